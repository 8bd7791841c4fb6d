"""Draws the samples of a comparison: files that carry their origin and are not drawn twice.

First every setting of every method, a few samples of one seed; the measures say which settings are
worth more (`frontier.choose`); then those, of all seeds. The second draw has other noise than the
first, so that a setting is not praised for the noise that it was chosen by.

Several processes share the files: each draws its part on its own devices.
"""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Sequence

import jax

from flm_jax import inference
from flm_jax.errors import UserError
from flm_jax.evals import artefact
from flm_jax.host import compiled, distributed
from flm_jax.inference import FlowModel
from flm_jax.inference.programs import counted
from flm_jax.lab.compare import grid
from flm_jax.lab.compare.asked import Drawing
from flm_jax.lab.compare.results import OPTION, Drawn, Point, split

PILOT, FINAL = "pilot", "final"  # folders of samples, in that of a run
SEEDS = {PILOT: 0, FINAL: 1}  # of the noise
EVALUATIONS = "evaluations"


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network that takes part.

    Attributes:
      method: the name of its row.
      seed: of its training.
      path: what `inference.load` takes.
      samples: folder for what it writes.
    """

    method: str
    seed: int
    path: str
    samples: pathlib.Path


def every_point(trained: Trained, drawing: Drawing) -> list[Point]:
    """The grid of a network, which is loaded for it."""
    experiment = inference.load(trained.path).experiment
    return list(grid.points(trained.method, experiment, drawing.evaluations, drawing.points))


def draw(trained: Trained, points: Sequence[Point], count: int, which: str) -> list[Drawn]:
    """So many samples of a network at every point; those that are there are not drawn again."""
    model = inference.load(trained.path)
    writer = Writer(model, artefact.weights_sha256(model.params), trained, count, which)
    mine = points[jax.process_index() :: jax.process_count()]
    for number, point in enumerate(mine, 1):
        if writer.stored(point) is None:
            shown = f"{point.sampler} {point.knobs}".strip()
            if distributed.is_main():
                print(
                    f"  {trained.samples.name}: {number} of {len(mine)}, {shown}, "
                    f"{counted(point.evaluations)}",
                    flush=True,
                )
            writer.write(point)
    distributed.meet("samples")
    found = [writer.stored(point) for point in points]
    del model, writer
    compiled.forget()  # every point has a program of its own
    return [one for one in found if one is not None]


@dataclasses.dataclass(frozen=True)
class Writer:
    """One network, and where its samples go."""

    model: FlowModel
    weights: str
    trained: Trained
    count: int
    which: str

    def file(self, point: Point) -> pathlib.Path:
        words = [f"{point.evaluations:05d}", point.sampler]
        words += [f"{name.removeprefix(OPTION)}_{value}" for name, value in point.settings]
        name = re.sub(r"[^\w.-]+", "-", "_".join(words))
        return self.trained.samples / self.which / f"{name}.jsonl"

    def origin(self, point: Point) -> dict[str, object]:
        """What decides the samples."""
        return {
            "weights_sha256": self.weights,
            "sampler": point.sampler,
            "settings": dict(point.settings),
            "sampler_steps": point.evaluations,
            "seed": SEEDS[self.which],
            "length": self.model.config.data.length,
        }

    def stored(self, point: Point) -> Drawn | None:
        """The samples of a point, if they are there, whole, and of this network."""
        path, origin = self.file(point), self.origin(point)
        with contextlib.suppress(UserError):
            found = artefact.read(path, [*origin, EVALUATIONS])
            same = not artefact.differences(found.origin, origin)
            if same and len(found.texts) == self.count:
                spent = float(found.origin[EVALUATIONS])
                return Drawn(point, self.trained.seed, path, spent)
        return None

    def write(self, point: Point) -> None:
        """Draws the samples of a point."""
        knobs, options = split(point.settings)
        drawn = self.model.generate(
            self.count,
            point.steps(self.model.config.sampler.fixed_point_iterations),
            SEEDS[self.which],
            sampler=point.sampler,
            sampler_options=options,
            **knobs,
        )
        # As measures read real rows: without a line break between the documents of one row.
        texts = [self.model.tokenizer.decode(row.tolist()) for row in drawn.tokens]
        made = artefact.Artefact(self.origin(point), drawn.tokens, texts, drawn.seconds)
        facts = {EVALUATIONS: drawn.evaluations, "method": point.method}
        artefact.write(self.file(point), made, **facts)
