"""Parity: recorded runs of the official PyTorch code, repeated through the code that trains here.

    flm parity DIRECTORY [--only PATTERN] [--json FILE]

`goldens` reads a recorded set, `checks` compares and keeps score, `runner` has one row per kind of
case; every other module runs the kinds of one noun. Nothing here is a second implementation:
recorded draws fill the draws of the losses and the samplers, recorded batches go through the
training step.
"""
