"""The ways in which a trained network of the proof writes, and with how many evaluations."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from flm_jax import config as config_lib
from flm_jax.samplers import SAMPLERS

EVALUATIONS = (1, 2, 4, 8, 16, 32, 128)


@dataclasses.dataclass(frozen=True)
class Way:
    """A sampler with its knobs and options.

    Attributes:
      name: "" for the sampler of the config as it is.
      in_turn: every evaluation writes a token at least, so that more of them than there are open
        tokens change nothing.
      at_least: evaluations; with fewer it is what another way is.
    """

    name: str
    sampler: str
    knobs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    in_turn: bool = False
    at_least: int = 1

    def numbers(self, open_tokens: int, only: int | None) -> Iterator[int]:
        """Of evaluations to write so many tokens; ``only``: the one that the sampler takes."""
        for n in (only,) if only else EVALUATIONS:
            fewer = max((m for m in EVALUATIONS if m < n), default=0)
            if n >= self.at_least and not (self.in_turn and fewer >= open_tokens):
                yield n


# Refinement with fewer evaluations than rounds has a round for each.
ROUNDS = 16
_REFINED = Way("refined", "refinement", {"rounds": ROUNDS, "threshold": -1.0})
_ROUND_EACH = Way(
    "a round each",
    "refinement",
    {"rounds": EVALUATIONS[-1], "threshold": -1.0},
    in_turn=True,
    at_least=ROUNDS + 1,
)
_BY = {"by confidence": "confidence", "by drawn confidence": "drawn"}
_MASKED = (
    Way(name, "ancestral_masked", options={"order": order}, in_turn=True)
    for name, order in _BY.items()
)
WAYS = {  # by method, besides the sampler of its config
    "flm_given": (_REFINED,),
    "any_order": (_REFINED, _ROUND_EACH),
    "mdlm": tuple(_MASKED),
}


def ways(config: config_lib.Config, grid_power: float) -> Iterator[Way]:
    """All of a method: that of its config, the same with shorter steps at the end, and others."""
    own = config.sampler
    yield Way("", own.name)
    if "grid_power" in SAMPLERS[own.name].uses and grid_power != own.grid_power:
        yield Way(f"grid {grid_power:g}", own.name, {"grid_power": grid_power}, at_least=2)
    yield from WAYS.get(config.stage, ())
