"""How far bfloat16 is from float32, as a table: flm parity precision DIRECTORY.

The recorded networks, noise and times of a golden set run twice, with ``model.dtype`` float32 and
bfloat16: losses, gradients, states of the samplers and the tokens at the end.
"""

from collections.abc import Iterator

import jax
import numpy as np

from flm_jax.errors import UserError
from flm_jax.flow.clock import build
from flm_jax.lab.parity import goldens, losses, networks, objective, sampling
from flm_jax.lab.parity.checks import case_record
from flm_jax.lab.parity.goldens import Case
from flm_jax.losses import FlowMatching
from flm_jax.samplers import Euler, FlowMap

LOSS_CASES = ("flm/flm_main", "flm/flm_large_logits")
SAMPLER_CASES = ("sampler/flm_sampler", "sampler/fmlm_sampler_gamma0.0")
TYPES = ("float32", "bfloat16")


def loss_row(case: Case) -> str:
    """Relative error of the loss, largest error per token in nats, cosine of the gradients."""
    batch, draws = losses.recorded_batch(case)
    found = {}
    for dtype in TYPES:
        family = networks.Family.read(case, dtype=dtype)
        out, gradient = objective.run(
            family.params(), batch, draws, build(family.sizes.vocab_size),
            models=family.models, loss=FlowMatching(), space="onehot",
        )  # fmt: skip
        flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(gradient)])
        found[dtype] = float(out["out/loss"]), np.asarray(out["out/loss_per_token"]), flat
    (loss, tokens, gradient), (loss16, tokens16, gradient16) = (found[dtype] for dtype in TYPES)
    cosine = gradient @ gradient16 / np.linalg.norm(gradient) / np.linalg.norm(gradient16)
    return (
        f"| {case.name} | loss {loss:.4f} | {abs(loss16 / loss - 1):.1e} | "
        f"{np.max(np.abs(tokens16 - tokens)):.1e} | gradient cosine {cosine:.5f} |"
    )


def sampler_rows(case: Case) -> list[str]:
    """Per number of steps: largest difference of the last state, and tokens that differ."""
    families = {dtype: networks.Family.read(case, dtype=dtype) for dtype in TYPES}
    sizes = families["float32"].sizes
    params, clock = families["float32"].params(), build(sizes.vocab_size)
    make = FlowMap if sizes.two_times else Euler
    start = networks.wide(case["draw/z0"])
    rows = []
    for steps in case_record(case, "steps"):
        found = {}
        for dtype in TYPES:
            tokens, path = sampling.run(
                params, start, None, clock, {},
                models=families[dtype].models, make=make, space="onehot", steps=steps,
            )  # fmt: skip
            found[dtype] = np.asarray(tokens), np.asarray(path.states[-1])
        (tokens, state), (tokens16, state16) = (found[dtype] for dtype in TYPES)
        rows.append(
            f"| {case.name} | {steps} steps | {np.max(np.abs(state16 - state)):.1e} of "
            f"{np.max(np.abs(state)):.2f} | {np.mean(np.abs(state16 - state)):.1e} mean | "
            f"{int(np.sum(tokens != tokens16))} of {tokens.size} tokens differ |"
        )
    return rows


def table(directory: str) -> Iterator[str]:
    """Lines of the table for a recorded set; UserError if it lacks one of the cases."""
    cases = {case.name: case for case in goldens.read(directory)}
    missing = [n for n in (*LOSS_CASES, *SAMPLER_CASES) if n not in cases]
    if missing:
        raise UserError(f"{directory} has no case {missing[0]!r}; give the whole set")
    yield f"bfloat16 against float32 on {jax.devices()[0].device_kind}\n"
    yield "| case | | largest error | | |\n|---|---|---|---|---|"
    with jax.default_matmul_precision("highest"):
        for name in LOSS_CASES:
            yield loss_row(cases[name])
        for name in SAMPLER_CASES:
            yield from sampler_rows(cases[name])
