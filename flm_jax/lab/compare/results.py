"""What a comparison is made of: methods, the points at which they write, and the files of that.

Trainings and samplers make `Drawn` (files of samples), measures read them, and nothing else passes
between the two. So samples are drawn once, and measured again by whatever metric comes later.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from flm_jax.sampling import Sampling

OPTION = "sampler_options."  # begins the name of a setting that is an option of the sampler
Setting = tuple[str, float | str]  # a sampling knob, or such an option, and its value


def split(settings: Sequence[Setting]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The knobs and the options of the sampler among settings."""
    knobs = {name: value for name, value in settings if not name.startswith(OPTION)}
    options = {
        name.removeprefix(OPTION): value for name, value in settings if name.startswith(OPTION)
    }
    return knobs, options


@dataclasses.dataclass(frozen=True)
class Point:
    """One way of writing: hashable, the same for all seeds of a training.

    Attributes:
      method: a row of the comparison: "flm", "mdlm", or the name of a given run.
      evaluations: network evaluations per sequence, at most.
      sampler: a row of `flm_jax.samplers.SAMPLERS`.
      settings: what was set besides, sorted by name; () = the sampler as the run's config has it.
    """

    method: str
    evaluations: int
    sampler: str
    settings: tuple[Setting, ...] = ()

    def steps(self, passes: int = 1) -> int:
        """Steps of the sampler: guides and repeated passes cost evaluations, too.

        Args:
          passes: of every step, where no setting says how many.
        """
        knobs: dict[str, Any] = {"fixed_point_iterations": passes, **split(self.settings)[0]}
        one = Sampling(**knobs)
        return max(1, self.evaluations // one.evaluations_per_step)

    @property
    def knobs(self) -> str:
        """For tables: "gamma 0.5, temperature 0.8"; "" where nothing was set."""
        return ", ".join(
            f"{name.removeprefix(OPTION)} " + (value if isinstance(value, str) else f"{value:g}")
            for name, value in self.settings
        )


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Samples of one trained network at one point.

    Attributes:
      seed: of the training.
      samples: their file (`evals.artefact`).
      evaluations: network evaluations per sequence that were used, on average.
    """

    point: Point
    seed: int
    samples: pathlib.Path
    evaluations: float
