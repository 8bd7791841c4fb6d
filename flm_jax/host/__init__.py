"""What the machine is and needs: devices, processes, files, memory, and what a person sees.

numerics.py     JAX's settings that decide numbers, and the devices
sharding.py     arrays over a mesh of devices
distributed.py  several processes that find, meet and agree with each other
watchdog.py     a process that notices when another one is gone
files.py        a file is written whole or not at all; folders.py, locks.py, windows.py beside it
download.py     one file from the web
memory.py       the memory that the C library keeps
progress.py     bars and waiting lines on stderr
runlog.py       numbers over time, in files; wandb_feed.py sends them to Weights & Biases
"""
