"""What a comparison is made of: methods, the points at which they write, and the files of that.

Trainings and samplers make `Drawn` (files of samples), measures read them, and nothing else passes
between the two. So samples are drawn once, and measured again by whatever metric comes later.
"""

import dataclasses
import pathlib

from flm_jax.sampling import Sampling, knob_fields

Setting = tuple[str, float | str]  # a sampling knob, or "sampler_options.NAME", and its value


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
        """Steps of the sampler: guides and repeated passes, of which the config may have ``passes``
        in every step, cost evaluations, too.
        """
        named = {"fixed_point_iterations": passes, **dict(self.settings)}
        known = {field.name for field in knob_fields()}
        one = Sampling(**{name: value for name, value in named.items() if name in known})
        return max(1, self.evaluations // one.evaluations_per_step)

    @property
    def knobs(self) -> str:
        """For tables: "gamma 0.5, temperature 0.8"; "" where nothing was set."""
        return ", ".join(
            f"{name.removeprefix('sampler_options.')} "
            + (value if isinstance(value, str) else f"{value:g}")
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
