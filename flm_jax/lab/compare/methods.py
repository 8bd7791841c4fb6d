"""The methods of a comparison: what each is trained with, and the run that it starts from.

A method is a row: an objective, its sampler, and the method that comes before it. Its network
follows from what the objective needs; all else is the same for all. A method with another one
before it shares its budget with it, half and half, on as many levels as there are.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from flm_jax.contracts import Needs
from flm_jax.errors import UserError
from flm_jax.losses import LOSSES
from flm_jax.registry import nearest

HALVES = {1.0: "", 0.5: "_half", 0.25: "_quarter"}  # share of a budget to the end of a run's name


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of `METHODS`.

    Attributes:
      loss, options: the objective, a row of `flm_jax.losses.LOSSES`.
      sampler: that of its config.
      before: the method whose run it starts from.
      rounds: of an objective that divides its updates into rounds.
    """

    loss: str
    sampler: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    before: str = ""
    rounds: int = 0

    @property
    def needs(self) -> Needs:
        """The networks that its objective is made for."""
        return LOSSES[self.loss](**self.options).needs


GIVEN = {"given": "uniform"}
METHODS = {
    "ar": Method("autoregressive", "autoregressive"),
    "mdlm": Method("masked_diffusion", "ancestral_masked"),
    "sdtt": Method("sdtt", "ancestral_masked", before="mdlm", rounds=8),
    "duo": Method("uniform_diffusion", "ancestral_uniform"),
    "dcd": Method("dcd", "ancestral_uniform", before="duo", rounds=5),
    "flm": Method("flow_matching", "euler"),
    "fmlm": Method("psd", "flow_map", {"boundary_fraction": 0.125}, before="flm"),
    "flm_given": Method("flow_matching", "euler", GIVEN),
    "any_order": Method("any_order", "flow_map", {"boundary_fraction": 0.125}, before="flm_given"),
    # Uniform diffusion as it was published: the first half with less noise in the gradient, from an
    # array over the vocabulary that large vocabularies have no memory for.
    "duo_early": Method("uniform_curriculum", "ancestral_uniform"),
    "duo_curriculum": Method("uniform_diffusion", "ancestral_uniform", before="duo_early"),
}
DEFAULT = ("ar", "mdlm", "sdtt", "duo", "dcd", "flm", "fmlm", "any_order")


@dataclasses.dataclass(frozen=True)
class Stage:
    """A training that is needed: a method, at its share of one budget.

    Attributes:
      name: of its runs: "flm", or "flm_half" of the one that a student starts from.
      before: the name of the stage whose run it starts from; "" = none.
    """

    name: str
    method: str
    share: float
    before: str = ""


def chain(method: str, share: float = 1.0) -> list[Stage]:
    """The stages of a method, in the order in which they are trained."""
    before, name = METHODS[method].before, method + HALVES[share]
    if not before:
        return [Stage(name, method, share)]
    earlier = chain(before, share / 2)
    return [*earlier, Stage(name, method, share / 2, earlier[-1].name)]


def stages(methods: Sequence[str]) -> list[Stage]:
    """All that some methods need, each once, every one after that which it starts from."""
    found: dict[str, Stage] = {}
    for method in methods:
        found |= {stage.name: stage for stage in chain(method)}
    return list(found.values())


def tuned(methods: Sequence[str]) -> list[Stage]:
    """One stage of every objective, of which the others take their learning rate.

    That with the largest share, and after it what starts from it.
    """
    largest: dict[str, Stage] = {}
    for stage in stages(methods):
        if stage.method not in largest or stage.share > largest[stage.method].share:
            largest[stage.method] = stage
    return [
        dataclasses.replace(one, name=method, before=METHODS[method].before)
        for method, one in largest.items()
    ]


def check(methods: Sequence[str]) -> None:
    """UserError for a name that is no method, or is there twice."""
    for name in methods:
        if name not in METHODS:
            hint = nearest(name, METHODS)
            raise UserError(f"--methods: there is no {name!r}{hint}; use {', '.join(METHODS)}")
