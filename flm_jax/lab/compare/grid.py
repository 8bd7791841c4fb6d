"""The ways in which a trained network writes: the grid of sampling knobs of every kind of network.

The first way of a list is the sampler as it is; the others are in order of what they are worth, so
that a small comparison takes the first few. What trades likelihood for diversity is in all of them:
a method without such a knob would be judged by one point (docs/comparing.md).
"""

import dataclasses
from collections.abc import Iterator, Sequence

from flm_jax.experiment import Experiment
from flm_jax.lab.compare.results import OPTION, Point, Setting, split
from flm_jax.samplers.base import Sampler


@dataclasses.dataclass(frozen=True)
class Way:
    """A sampler with its knobs.

    Attributes:
      settings: see `results.Point`.
      at_least: evaluations; with fewer it writes what the first way does.
      in_turn: every evaluation writes a token at least, so that more of them than there are tokens
        change nothing.
    """

    sampler: str
    settings: tuple[Setting, ...] = ()
    at_least: int = 1
    in_turn: bool = False


def _way(sampler: str, at_least: int = 1, in_turn: bool = False, **settings: float | str) -> Way:
    """A way whose options of the sampler, which are no knobs, begin with option_."""
    named = {
        name.replace("option_", OPTION) if name.startswith("option_") else name: value
        for name, value in settings.items()
    }
    return Way(sampler, tuple(sorted(named.items())), at_least, in_turn)


def _tokens(sampler: str, *others: Way) -> tuple[Way, ...]:
    """Of samplers that draw every token: two temperatures, a nucleus, and others."""
    warm, cool = (_way(sampler, denoiser_temperature=value) for value in (0.9, 0.8))
    nucleus = _way(sampler, option_top_p=0.9)
    return _way(sampler), cool, *others[:1], warm, nucleus, *others[1:]


_CONFIDENT = {"option_order": "confidence", "option_choice_temperature": 1.0}
_MASKED = _way("ancestral_masked", at_least=2, in_turn=True, **_CONFIDENT)
_REFINED = {"rounds": 16, "threshold": -1.0}
_GUIDED = {"guide": "dropout", "guidance": 5.0}  # two evaluations a step
_ROUNDS = (
    _way("refinement", 2, **_REFINED),
    _way("refinement", 2, confidence_noise=1.0, **_REFINED),
    _way("refinement", 2, rounds=16, threshold=0.9),
)
_JUMPS = (
    _way("flow_map"),
    _way("flow_map", 2, gamma=1.0),
    _way("flow_map", prior_scale=0.8),
    _way("flow_map", 2, gamma=0.5, denoiser_temperature=0.8),
    _way("flow_map", 2, gamma=0.5),
    _way("flow_map", 2, **_GUIDED),
)
_STEPS = (
    _way("euler"),
    _way("churn", 2),
    _way("churn", 2, denoiser_temperature=0.8),
    _way("euler", 2, denoiser_temperature=0.8),
    _way("euler", 2, **_GUIDED),
    _way("euler", temperature=1.0),
)
_UNIFORM = _tokens(
    "ancestral_uniform",
    _way("ancestral_uniform", option_last="greedy"),
    _way("ancestral_uniform", 2, option_psi="max-capped-0.1"),
)
WAYS: dict[str, tuple[Way, ...]] = {  # by loss
    "autoregressive": _tokens(
        "autoregressive",
        _way("autoregressive", denoiser_temperature=0.7),
        _way("autoregressive", option_top_p=0.8),
    ),
    "masked_diffusion": _tokens(
        "ancestral_masked", _MASKED, _way("ancestral_masked", 2, True, option_order="drawn")
    ),
    "sdtt": _tokens("ancestral_masked", _way("ancestral_masked", option_last="greedy"), _MASKED),
    **dict.fromkeys(("uniform_diffusion", "uniform_curriculum"), _UNIFORM),
    "dcd": _tokens(
        "ancestral_uniform",
        _way("ancestral_uniform", option_last="greedy"),
        _way("ancestral_uniform", option_begin=0.995),
    ),
    "flow_matching": _STEPS,
    **dict.fromkeys(("psd", "lsd", "esd", "second_stage"), _JUMPS),
    "any_order": (_JUMPS[0], *_ROUNDS, *_JUMPS[1:3]),
}
WITH_GIVEN = (_STEPS[0], _ROUNDS[0], _STEPS[1], *_ROUNDS[1:], _STEPS[2])  # of a denoiser that is


def ways(experiment: Experiment, most: int) -> tuple[Way, ...]:
    """At most so many of a network; of an unknown kind only the sampler of its config."""
    name = experiment.config.loss.name
    found = WAYS.get(name, (Way(experiment.config.sampler.name),))
    if found is _STEPS and experiment.loss.needs.given:
        found = WITH_GIVEN
    return found[:most]


def points(
    method: str, experiment: Experiment, evaluations: Sequence[int], most: int
) -> Iterator[Point]:
    """Every way at every number of evaluations that it can write in.

    A sampler that writes in one number of evaluations only, such as the autoregressive one, does so
    once.
    """
    length = experiment.config.data.length
    for way in ways(experiment, most):
        options = split(way.settings)[1]
        for count in counts(experiment.sampler(way.sampler, options), evaluations, length):
            enough = any(length <= other < count for other in evaluations)
            if count >= way.at_least and not (way.in_turn and enough):
                yield Point(method, count, way.sampler, way.settings)


def counts(rule: Sampler, evaluations: Sequence[int], length: int) -> list[int]:
    """Those numbers of evaluations in which a sampler writes: the only one, or all."""
    only = rule.steps_for(length)
    return [only] if only else list(dict.fromkeys(evaluations))
