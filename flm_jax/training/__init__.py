"""Everything about a training run.

loop.py       the training loop; its door is `loop.train`
session.py    a session of a run: all that config and workdir say, built, restored and saved
step.py       one training step, compiled; optim.py: the optimizer
workdir.py    the folder of a run: claimed, locked, compared with the config
sources.py    other models that a run starts from
results.py    what a run leaves for machines: run.json, results.json
summary.py    the last words of a run: samples, table, commands to go on
incidents.py  numbers that are not finite, norms that leap, exceptions
reproduce.py  a step that was not finite, repeated
stop.py       signals that ask for an orderly end
meter.py      how well the machine is used: MFU, waiting for data, memory; profile.py: a trace
estimate.py   how long a run will take here; from cost.py and products.py
"""
