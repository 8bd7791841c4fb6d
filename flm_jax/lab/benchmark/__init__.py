"""Speed and memory of training steps and samplers: flm benchmark --help.

asked.py      what is asked, and the plan of one measurement
vocabulary.py size of a config's vocabulary, without its text (flm_jax.lab.plan asks too)
measure.py    one space in this process: tokens/s, memory, compile time
processes.py  measurements in child processes, both spaces in turn
profile.py    where the time of one goes, by kind of work
latencies.py  milliseconds of every method at every number of evaluations (lab/compare/latency.py)
sweep.py      many shapes: the cost law over B, L, V; the largest batch; tables
"""

ONE = ("train", "sample")  # what one process can measure
MANY = ("sweep", "table")  # what takes many of them
PROFILE = "profile"
LATENCY = "latency"
