"""Attention of every form that this machine has, against the plain one, and its milliseconds.

    python benchmarks/gpu_kernels.py 128,1024        lengths

Values and gradients in bfloat16 against `einsum` in float32; a line of JSON for each form, length
and kind of mask. A form that the machine has no kernel for says why.
"""

import functools
import json
import sys
import time

import jax
import jax.numpy as jnp

from flm_jax import target
from flm_jax.errors import UserError
from flm_jax.models import attention, kernels

ROWS, HEADS, WIDTH, CAP, REPEATS = 4, 12, 64, 50.0, 20


def gradient(form: str, cap: float, causal: bool):
    """Value and gradients of a sum that weighs all entries of the result differently."""
    attend = functools.partial(attention.attend, cap=cap, backend=form, causal=causal)

    def scalar(q, k, v):
        return jnp.sum(jnp.sin(attend(q, k, v).astype(jnp.float32)))

    def both(q, k, v):
        return attend(q, k, v), *jax.grad(scalar, (0, 1, 2))(q, k, v)

    return jax.jit(both)


def milliseconds(function, arrays) -> float:
    """The least of some runs after one that is not counted."""
    jax.block_until_ready(function(*arrays))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(function(*arrays))
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def main() -> None:
    forms = ["einsum", "chunked"]
    if kernels.installed():
        forms.append("tokamax")
    print(json.dumps({"device": target.current().device_kind, "forms": forms}), flush=True)
    for length in map(int, sys.argv[1].split(",")):
        keys = jax.random.split(jax.random.key(0), 3)
        shape = ROWS, length, HEADS, WIDTH
        wide = [2.0 * jax.random.normal(key, shape, jnp.float32) for key in keys]
        low = [x.astype(jnp.bfloat16) for x in wide]
        exact = [x.astype(jnp.float32) for x in low]
        for causal, cap in ((False, CAP), (True, 0.0)):
            with jax.default_matmul_precision("highest"):
                wanted = gradient("einsum", cap, causal)(*exact)
            for form in forms:
                row = {"form": form, "length": length, "causal": causal, "cap": cap}
                try:
                    function = gradient(form, cap, causal)
                    errors = [
                        float(jnp.abs(mine - oracle).max() / jnp.abs(oracle).max())
                        for mine, oracle in zip(function(*low), wanted, strict=True)
                    ]
                    row |= {"errors": errors, "ms": milliseconds(function, low)}
                except UserError as error:
                    row["refused"] = str(error)
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
