"""Kills, damage and full disks while a tiny model trains; then: is everything as without them?

python -m flm_jax.soak --kills=50 --minutes=20

__main__.py   the command: sessions one after the other, each ended by a fault; the result
session.py    one session of training, in a process of its own, that records what it does
faults.py     killing, damaging checkpoints, filling the disk
verdict.py    what the records must say, compared with an uninterrupted run
"""
