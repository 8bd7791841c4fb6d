"""The kind sampler: every state on the way from recorded noise to tokens."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from flm_jax.flow.clock import Clock, build
from flm_jax.flow.space import SPACES
from flm_jax.models import dit
from flm_jax.parity import networks
from flm_jax.parity.checks import Checks, case_record
from flm_jax.parity.goldens import Case
from flm_jax.samplers import Euler
from flm_jax.samplers.base import Sampler, Trajectory, sample


@functools.partial(jax.jit, static_argnames=("model", "sampler", "space", "steps"))
def run(
    params: Any, start_BLV: jax.Array, clock: Clock, *, model: dit.Model, sampler: Sampler,
    space: str, steps: int,
) -> tuple[jax.Array, Trajectory]:  # fmt: skip
    """Tokens and trajectory from recorded dense noise, in the space of that name."""
    net = model.net(params)
    place = SPACES[space]({"student": net.table})
    batch, length, _ = start_BLV.shape
    return sample(
        sampler,
        {"student": net},
        place,
        clock,
        jax.random.split(jax.random.key(0), batch),  # nothing is drawn: the noise is given
        steps=steps,
        length=length,
        start=place.from_dense(start_BLV),
        trajectory=True,
    )


def euler(case: Case, checks: Checks) -> None:
    """The sampler of one-time networks, in both spaces and at every recorded number of steps."""
    tensors = networks.state(case)
    sizes = networks.sizes_of(tensors)
    model = networks.model(case, sizes, networks.logit_cap(case))
    table = tensors["vocab_embed.embedding"].astype(float)
    for bits in (64, 32):
        with checks.precision(bits):
            clock = build(sizes.vocab_size)
            params = networks.params(tensors)
            start = networks.wide(case["draw/z0"])
            for space in SPACES:
                seen = (lambda a: a) if space == "onehot" else (lambda a: a @ table)
                for steps in case_record(case, "steps"):
                    tokens, path = run(
                        params, start, clock, model=model, sampler=Euler(), space=space, steps=steps
                    )
                    name = f"out/tokens_s{steps}"
                    checks.exact(f"{name} {space}", tokens, case[name])
                    checks.recorded(f"out/states_s{steps}", path.states, space=space, view=seen)
                    checks.recorded(f"out/final_s{steps}", path.states[-1], space=space, view=seen)
                    if space == "onehot":
                        _times(checks, path, steps, start.shape[0])


def _times(checks: Checks, path: Trajectory, steps: int, batch: int) -> None:
    end = jnp.ones((1,))
    checks.recorded(f"mid/tau_grid_s{steps}", jnp.concatenate([path.tau_S, end]))
    checks.recorded(f"mid/t_grid_s{steps}", jnp.concatenate([path.t_S, end]))
    checks.recorded(f"mid/tau_in_s{steps}", jnp.tile(path.tau_S[:, None], (1, batch)))
