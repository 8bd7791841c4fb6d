"""A page on which models write, in the browser: a folder for any static host.

folder.py       the folder: the page, and what it needs of each model
tokenizer.py    what JavaScript needs to know of a tokenizer
server.py       the folder on the loopback
web/            the page: no library, no build step, no request to another host
"""
