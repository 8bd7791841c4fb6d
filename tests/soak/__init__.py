"""Kills, damage and full disks while a tiny model trains; then: is everything as without them?

python -m tests.soak --kills=50 --minutes=20

__main__.py   the command: a small disk for the checkpoints, the soak in it, the result
kills.py      sessions one after the other, each ended by a fault, and what each must leave
session.py    one session of training, in a process of its own, that records what it does
faults.py     killing, damaging checkpoints, filling the disk
verdict.py    what the records must say, compared with an uninterrupted run
"""
