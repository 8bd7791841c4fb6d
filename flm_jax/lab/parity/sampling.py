"""The kind sampler: every state on the way from recorded noise to tokens."""

import functools
import types
from collections.abc import Callable, Mapping

import jax
import numpy as np
from numpy.typing import ArrayLike

from flm_jax.flow.at import At
from flm_jax.flow.clock import Clock, build
from flm_jax.flow.space import SPACES
from flm_jax.flow.trees import Params
from flm_jax.host import numerics
from flm_jax.lab.parity import networks, programs
from flm_jax.lab.parity.checks import Checks, case_record
from flm_jax.lab.parity.goldens import Case
from flm_jax.samplers import Euler, FlowMap, TwoModel, TwoStage
from flm_jax.samplers.base import Given, Sampler, Trajectory
from flm_jax.sampling import Sampling

# (t, tau of the ends of steps, the clock) -> what the network is told of the ends
SecondTime = Callable[[np.ndarray, np.ndarray, Clock], ArrayLike]
PREFIXES = {"student": "param/", "teacher": "teacher_param/"}


class Noisy(FlowMap):
    """`FlowMap` with a gamma above 0 that may be traced: one program serves every gamma."""

    @property
    def stochastic(self) -> bool:
        return True

    def __post_init__(self):
        """No check: a traced number has no value yet."""


@programs.compiled(static_argnames=("models", "make", "space", "steps"))
def run(
    params: dict[str, Params], start_BLV: jax.Array, noise: jax.Array | None, clock: Clock,
    options: dict[str, jax.Array], *, models: networks.Models, make: Callable[..., Sampler],
    space: str, steps: int,
) -> tuple[jax.Array, Trajectory]:  # fmt: skip
    """Tokens and trajectory from recorded dense noise, in the space of that name.

    ``make(**options)`` is the sampler. Tokens and confidences on the way are omitted.
    """
    _, tokens_BL, path = from_recorded(
        make(**options), params, models, start_BLV, noise, clock, space, steps
    )
    return tokens_BL, path._replace(tokens_SBL=None, confidence_SBL=None)


def from_recorded(
    sampler: Sampler, params: dict[str, Params], models: networks.Models, start_BLV: jax.Array,
    noise: jax.Array | None, clock: Clock, space: str, steps: int, given: Given | None = None,
) -> tuple[At, jax.Array, Trajectory]:  # fmt: skip
    """Where the sampler was evaluated, its tokens and its trajectory, from recorded dense noise."""
    nets = {role: model.net(params[role]) for role, model in models}
    place = SPACES[space]({role: net.table for role, net in nets.items()})
    batch, length, _ = start_BLV.shape
    at = At(nets, place, clock)
    written = sampler.run(
        at,
        jax.random.split(numerics.key(0), batch),  # nothing is drawn: the noise is given
        Sampling(steps=steps),
        length,
        start=place.from_dense(start_BLV),
        noise=None if noise is None else jax.vmap(place.from_dense)(noise),
        trajectory=True,
        given=given,
    )
    path = written.trajectory
    assert path is not None  # it was asked for
    return at, written.tokens_BL, path


def euler(case: Case, checks: Checks) -> None:
    """The sampler of one-time networks."""
    compare(case, checks, Euler)


def flow_map(case: Case, checks: Checks) -> None:
    """The jump sampler with its share of fresh noise."""
    gamma = FlowMap(float(case.option("gamma"))).gamma

    def aim(t_S, tau_S, clock):
        return clock.to_tau(1.0 - (1.0 - t_S) * (1.0 - gamma**2) ** 0.5)

    options = {"gamma": gamma} if gamma else {}
    compare(case, checks, Noisy if gamma else FlowMap, options, second_time=aim)


def two_model(case: Case, checks: Checks) -> None:
    """The sampler of a denoiser and its correction."""
    compare(case, checks, TwoModel, second_time=lambda t_S, tau_S, clock: tau_S)


def two_stage(case: Case, checks: Checks) -> None:
    """The sampler of the second stage: Euler in February, jumps (with gamma) in April."""
    if case.entry["version"] == "apr":
        flow_map(case, checks)
    else:
        compare(case, checks, TwoStage, second_time=lambda t_S, tau_S, clock: tau_S)


def compare(
    case: Case,
    checks: Checks,
    make: Callable[..., Sampler],
    options: Mapping[str, float] = types.MappingProxyType({}),
    second_time: SecondTime | None = None,
) -> None:
    """Every state, the tokens and the times, in both spaces and at every recorded step count.

    ``second_time(t, tau, clock)`` of the ends of the steps is what the network is told of them.
    """
    roles = ["student", *(["teacher"] if make is TwoModel else [])]
    family = networks.Family.read(case, {role: PREFIXES[role] for role in roles})
    for bits in (64, 32):
        with checks.precision(bits):
            clock = build(family.sizes.vocab_size)
            start = networks.wide(case["draw/z0"])
            call = functools.partial(run, models=networks.chunked(family.models, bits), make=make)
            inputs = family.params(), start
            given = {name: networks.wide(value) for name, value in options.items()}
            for space in SPACES:
                view = family.seen(space)
                for steps in case_record(case, "steps"):
                    noise = f"draw/noise_s{steps}"
                    noise = networks.wide(case[noise]) if noise in case else None
                    tokens, path = call(*inputs, noise, clock, given, space=space, steps=steps)
                    name = f"out/tokens_s{steps}"
                    checks.exact(f"{name} {space}", tokens, case[name])
                    states = np.asarray(path.states)
                    checks.recorded(f"out/states_s{steps}", states, space=space, view=view)
                    checks.recorded(f"out/final_s{steps}", states[-1], space=space, view=view)
                    if space == "onehot":
                        _times(checks, path, steps, start.shape[0], second_time, clock)


def _times(
    checks: Checks,
    path: Trajectory,
    steps: int,
    batch: int,
    second_time: SecondTime | None,
    clock: Clock,
) -> None:
    tau_S, t_S = (np.append(x, np.ones_like(x[:1])) for x in (path.tau_S, path.t_S))
    checks.recorded(f"mid/tau_grid_s{steps}", tau_S)
    checks.recorded(f"mid/t_grid_s{steps}", t_S)
    checks.recorded(f"mid/tau_in_s{steps}", np.tile(tau_S[:-1, None], (1, batch)))
    if second_time is not None:
        tau_out = np.asarray(second_time(t_S[1:], tau_S[1:], clock))
        checks.recorded(f"mid/tau_out_s{steps}", np.tile(tau_out[:, None], (1, batch)))
