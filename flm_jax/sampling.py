"""How samples are drawn: every sampling knob, once.

From the fields here follow the config keys ``sampler.NAME``, the flags ``--NAME`` of the commands
that sample, the keywords of `FlowModel.generate`, the checks of all of them, the origin that stored
samples carry, and the key under which compiled samplers are kept. A new knob is one field.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from flm_jax.knobs import knob

# What a sampler option was called before it became a knob.
_WERE_OPTIONS = ("gamma",)

F = TypeVar("F", bound=Callable)

# The guides that a network has in itself (`samplers.guidance`); any other word is a checkpoint.
DROPOUT, NOTHING_GIVEN, NO_ESTIMATE = "dropout", "nothing_given", "no_estimate"
GUIDES = (DROPOUT, NOTHING_GIVEN, NO_ESTIMATE)


@dataclasses.dataclass(frozen=True)
class SamplingKnobs:
    """The knobs that a sampler may look at; `samplers.base.Sampler.uses` says which ones it does.

    A knob at its default has no effect on any sampler, so that samples from before it existed stay
    what they are.
    """

    temperature: float = knob(0.0, "temperature of the last decode (0 = arg-max)", at_least=0)
    top_p: float = knob(1.0, "nucleus of the last decode (1 = off)", above=0, at_most=1)
    denoiser_temperature: float = knob(
        1.0, "temperature of the denoiser in every step", above=0, below=math.inf
    )
    prior_scale: float = knob(1.0, "scale of the first noise", above=0, below=math.inf)
    grid_power: float = knob(
        1.0,
        "tau_i = 1 - (1 - i/steps)^grid_power; above 1: shorter steps at the end",
        above=0,
        below=math.inf,
    )
    gamma: float = knob(
        0.0,
        "share of fresh noise in every jump of a flow map (official: LM1B 0.8, OpenWebText 1)",
        at_least=0,
        at_most=1,
    )
    patience: int = knob(
        0, "stop a text whose tokens stay the same so many evaluations (0 = never)", at_least=0
    )

    fixed_point_iterations: int = knob(
        1,
        "network evaluations in every step, each told the estimate of the one before "
        "(self-conditioning)",
        at_least=1,
    )
    rounds: int = knob(
        4, "rounds of a refinement, which share the steps; each commits some tokens", at_least=1
    )
    threshold: float = knob(
        0.9,
        "a round of a refinement commits what is at least so probable (1 = hardly anything, 0 = "
        "all, -1 = by the budget only)",
        at_least=-1,
        at_most=1,
    )
    confidence_noise: float = knob(
        0.0, "scale of the Gumbel noise on the log-probabilities that a round ranks by", at_least=0
    )
    guidance: float = knob(
        1.0,
        "scale w of guidance, q + w (p - q) with the guide's prediction q (1 = p alone)",
        at_least=0,
        below=math.inf,
    )
    guide: str = knob(
        "",
        "what guides: dropout (the same network with some), nothing_given, no_estimate (the same, "
        "not told of given tokens, of its estimate), or another checkpoint",
    )
    guide_dropout: float = knob(0.1, "dropout of guide=dropout", above=0, below=1)
    reward_scale: float = knob(
        0.0,
        "strength of a reward r, given in Python: texts are drawn from about p exp(scale r)",
        at_least=0,
        below=math.inf,
    )
    reward_length: float = knob(
        0.0,
        "in place of reward_scale: how far every gradient moves a text, in standard deviations of "
        "the noise",
        at_least=0,
        below=math.inf,
    )

    def changed(self) -> dict[str, float | str]:
        """The knobs that are not at their defaults."""
        values = dataclasses.asdict(self)
        return {f.name: values[f.name] for f in knob_fields() if values[f.name] != f.default}


def knob_fields() -> tuple[dataclasses.Field, ...]:
    """The sampling knobs in order of definition."""
    return dataclasses.fields(SamplingKnobs)


def shown(value: float | str) -> str:
    """The value of a knob in a sentence."""
    return repr(value) if isinstance(value, str) else f"{value:g}"


def settled(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored description of a sampler as it is written today: {"name", "options", knobs ...}.

    Knobs at their defaults are left out, and options that have become knobs are knobs.
    """
    options = dict(stored.get("options", {}))
    were = {name: options.pop(name) for name in _WERE_OPTIONS if name in options}
    found = {**stored, "options": options, **were}
    defaults = {field.name: field.default for field in knob_fields()}
    return {k: v for k, v in found.items() if k not in defaults or v != defaults[k]}


def with_knobs(function: F) -> F:
    """Decorator: ``**knobs`` of a function shown as the keywords that they are, for `help`."""
    signature = inspect.signature(function)
    kept = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    own = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=f.type)
        for f in knob_fields()
    ]
    shown = signature.replace(parameters=[*kept, *own])
    function.__signature__ = shown  # pyright: ignore[reportFunctionMemberAccess]
    return function


@dataclasses.dataclass(frozen=True)
class Sampling(SamplingKnobs):
    """The knobs of one draw, with its number of steps. Hashable."""

    steps: int = knob(1, "network evaluations (times fixed_point_iterations)", at_least=1)
    reward: Callable[..., Any] | None = None  # a `samplers.reward.Reward`

    @property
    def guided(self) -> bool:
        """Whether a guide is asked; at scale 1 it would not count."""
        return bool(self.guide) and self.guidance != 1.0

    @property
    def rewarded(self) -> bool:
        """Whether every step begins with a gradient."""
        return self.reward is not None and bool(self.reward_scale or self.reward_length)

    @property
    def evaluations_per_step(self) -> int:
        """Of networks: its own, that of the guide, and that whose gradient is taken."""
        return self.fixed_point_iterations + self.guided + self.rewarded

    @property
    def evaluations(self) -> int:
        """Of networks, in all steps."""
        return self.steps * self.evaluations_per_step
