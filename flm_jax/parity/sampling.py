"""The kind sampler: every state on the way from recorded noise to tokens."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.flow.clock import Clock, build
from flm_jax.flow.space import SPACES
from flm_jax.parity import networks
from flm_jax.parity.checks import Checks, case_record
from flm_jax.parity.goldens import Case
from flm_jax.samplers import Euler, FlowMap, TwoModel, TwoStage
from flm_jax.samplers.base import Sampler, Trajectory, sample

PREFIXES = {"student": "param/", "teacher": "teacher_param/"}


@functools.partial(jax.jit, static_argnames=("models", "sampler", "space", "steps"))
def run(
    params: dict[str, Any], start_BLV: jax.Array, noise: jax.Array | None, clock: Clock, *,
    models: tuple, sampler: Sampler, space: str, steps: int,
) -> tuple[jax.Array, Trajectory]:  # fmt: skip
    """Tokens and trajectory from recorded dense noise, in the space of that name."""
    nets = {role: model.net(params[role]) for role, model in models}
    place = SPACES[space]({role: net.table for role, net in nets.items()})
    batch, length, _ = start_BLV.shape
    return sample(
        sampler,
        nets,
        place,
        clock,
        jax.random.split(jax.random.key(0), batch),  # nothing is drawn: the noise is given
        steps=steps,
        length=length,
        start=place.from_dense(start_BLV),
        noise=None if noise is None else jax.vmap(place.from_dense)(noise),
        trajectory=True,
    )


def euler(case: Case, checks: Checks) -> None:
    """The sampler of one-time networks."""
    compare(case, checks, Euler(), lambda tau_in, tau_next, clock: None)


def flow_map(case: Case, checks: Checks) -> None:
    """The jump sampler with its share of fresh noise."""
    sampler = FlowMap(float(case.option("gamma")))

    def aim(tau_in, tau_next, clock):
        sigma = 1.0 - clock.to_t(tau_next)
        return clock.to_tau(1.0 - sigma * (1.0 - sampler.gamma**2) ** 0.5)

    compare(case, checks, sampler, aim)


def two_model(case: Case, checks: Checks) -> None:
    """The sampler of a denoiser and its correction."""
    compare(case, checks, TwoModel(), lambda tau_in, tau_next, clock: tau_next)


def two_stage(case: Case, checks: Checks) -> None:
    """The sampler of the second stage: Euler in February, jumps (with gamma) in April."""
    if case.entry["version"] == "apr":
        flow_map(case, checks)
    else:
        compare(case, checks, TwoStage(), lambda tau_in, tau_next, clock: tau_next)


def compare(case: Case, checks: Checks, sampler: Sampler, second_time: Callable) -> None:
    """Every state, the tokens and the times, in both spaces and at every recorded step count."""
    roles = ["student", *(["teacher"] if getattr(sampler, "needs_teacher", False) else [])]
    tensors = {role: networks.state(case, PREFIXES[role]) for role in roles}
    models = tuple(
        (role, networks.model(case, networks.sizes_of(found), networks.logit_cap(case)))
        for role, found in tensors.items()
    )
    tables = [found["vocab_embed.embedding"].astype(float) for found in tensors.values()]
    joint = np.concatenate(tables, axis=1)
    for bits in (64, 32):
        with checks.precision(bits):
            clock = build(joint.shape[0])
            params = {role: networks.params(found) for role, found in tensors.items()}
            start = networks.wide(case["draw/z0"])
            for space in SPACES:
                seen = (lambda a: a) if space == "onehot" else (lambda a: a @ joint)
                for steps in case_record(case, "steps"):
                    noise = None
                    if f"draw/noise_s{steps}" in case:
                        noise = networks.wide(case[f"draw/noise_s{steps}"])
                    tokens, path = run(
                        params, start, noise, clock,
                        models=models, sampler=sampler, space=space, steps=steps,
                    )  # fmt: skip
                    name = f"out/tokens_s{steps}"
                    checks.exact(f"{name} {space}", tokens, case[name])
                    checks.recorded(f"out/states_s{steps}", path.states, space=space, view=seen)
                    checks.recorded(f"out/final_s{steps}", path.states[-1], space=space, view=seen)
                    if space == "onehot":
                        _times(checks, path, steps, start.shape[0], second_time, clock)


def _times(checks, path: Trajectory, steps: int, batch: int, second_time, clock) -> None:
    grid = jnp.concatenate([path.tau_S, jnp.ones((1,))])
    checks.recorded(f"mid/tau_grid_s{steps}", grid)
    checks.recorded(f"mid/t_grid_s{steps}", jnp.concatenate([path.t_S, jnp.ones((1,))]))
    checks.recorded(f"mid/tau_in_s{steps}", jnp.tile(path.tau_S[:, None], (1, batch)))
    tau_out = second_time(path.tau_S, grid[1:], clock)
    if tau_out is not None:
        checks.recorded(f"mid/tau_out_s{steps}", jnp.tile(tau_out[:, None], (1, batch)))
