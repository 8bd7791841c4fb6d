"""Speed and memory of training steps and samplers: python -m flm_jax.benchmark --help.

cost.py      floating-point operations by formula; the matrix rate of this machine
measure.py   one space in this process: tokens/s, memory, compile time
__main__.py  the command; both spaces in child processes
"""
