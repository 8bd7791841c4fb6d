"""Texts of the exported model, with numpy, JAX and flatbuffers: python sample.py STEPS SEED."""

import json
import pathlib
import sys

import jax
import numpy as np
from jax import export

here = pathlib.Path(__file__).parent
steps, seed = int(sys.argv[1]), int(sys.argv[2])
model, pieces = (json.loads((here / f"{name}.json").read_text()) for name in ("model", "tokens"))
jump = jax.jit(export.deserialize(bytearray((here / "jump.stablehlo").read_bytes())).call)
weights, arrays = jax.device_put(dict(np.load(here / "weights.npz"))), np.load(here / "arrays.npz")
batch, length = model["batch"] or 4, model["length"]
shape = batch, length, model["state_width"]
noise = np.random.default_rng(seed).standard_normal(shape, "float32") * model["prior_scale"]
x = {"state": (noise @ arrays["noise"].T if "noise" in arrays else noise).astype("float32")}
x |= {"estimate": np.zeros_like(x["state"])}  # of self-conditioning: nothing yet
x |= {"given_tokens": np.zeros(shape[:2], "int32"), "given_mask": np.zeros(shape[:2], bool)}
times = np.linspace(0, 1, steps + 1, dtype="float32")
for now, then in zip(times[:-1], times[1:], strict=True):
    x |= {"tau_s": np.full(batch, now), "tau_t": np.full(batch, then)}
    found = jump(weights, {one["name"]: x[one["name"]] for one in model["inputs"]})
    x["state"], x["estimate"] = found["next_state"], found["mean"]
for row, sure in zip(found["tokens"], found["confidence"], strict=True):
    print(f"{sure.mean():.2f}", "".join(pieces[token] for token in row))
