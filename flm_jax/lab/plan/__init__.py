"""Memory, time and mesh of a training run on chips that are not here: flm plan --help.

chips.py       what chips can do, and names such as v5p-64 and h100x8
program.py     the training step of a config as shapes
memory.py      bytes on a chip by formula
timing.py      FLOPs and seconds by formula
predict.py     the mesh, the largest batch, the whole run
count.py       FLOPs counted in a traced program
validate.py    the formulas against compiled programs on this machine
report.py      a prediction in words, and as JSON
topology.py    chips described to their compilers
compiled.py    what a compiler says of a step, or of a sampler
hlo.py         a compiled program's text: collectives, arrays, kernels
moved.py       and the bytes that it moves
"""
