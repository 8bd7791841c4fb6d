"""What a trained network of the proof writes, by every sampler that suits it, and how well.

A network is asked in up to two ways: to write texts of its language from nothing, and to complete
texts whose first part is given (the left side of a sum, a puzzle), held-out ones. Samples are kept
in a folder of the run and are not drawn again.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flm_jax import config as config_lib
from flm_jax.errors import UserError
from flm_jax.lab.proof.ways import Way, ways

if TYPE_CHECKING:
    from flm_jax.data import Data
    from flm_jax.evals.tasks import Task
    from flm_jax.inference import FlowModel

VALID, RIGHT = "valid", "right"  # the columns that count: of texts from nothing, of answers
GIVEN = "left side given"


class Point(NamedTuple):
    """A place on a curve of a plot: who writes, and by how many network evaluations at most.

    ``way`` is its name (`ways.Way`). With 0 evaluations no model has written it.
    """

    method: str
    way: str
    evaluations: int

    @property
    def curve(self) -> str:
        return f"{self.method}, {self.way}" if self.way else self.method


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a run does at one task: values of columns by point, the tokens it has to write."""

    task: str
    column: str
    open_tokens: int
    values: Mapping[Point, Mapping[str, float | None]]
    possible: int = 0  # texts


def measure(
    config: config_lib.Config,
    language: str,
    workdir: pathlib.Path,
    grid_power: float,
    num_samples: int,
) -> Iterator[Measured]:
    """Everything that a run of a language, or of a task, can be asked."""
    from flm_jax import inference
    from flm_jax.data import load_data
    from flm_jax.data.synthetic import Synthetic
    from flm_jax.evals import artefact
    from flm_jax.evals.tasks import task

    model = inference.load(str(workdir))
    data = load_data(model.config.data, {}, tokenizer=model.tokenizer)
    writer = Writer(
        model, config.stage, workdir, grid_power, num_samples, artefact.weights_sha256(model.params)
    )
    corpus = data.corpus
    if not isinstance(corpus, Synthetic):
        yield answers(writer, language, task(data, num_samples))
        return
    yield texts(writer, language, data, corpus.language.size)
    if corpus.language.given_until and takes_given(model):
        section = config_lib.to_dict(model.config)["data"]
        section["options"]["given"] = True
        asked = task(load_data(section, {}, tokenizer=model.tokenizer), num_samples)
        yield answers(writer, f"{language}, {GIVEN}", asked)


def takes_given(model: "FlowModel") -> bool:
    """Whether it can complete texts: samplers of tokens can, networks that were trained for it."""
    from flm_jax.samplers.tokens import TokenSampler

    return model.experiment.loss.needs.given or isinstance(model.sampler()[0], TokenSampler)


@dataclasses.dataclass(frozen=True)
class Writer:
    """Draws and keeps samples of one run."""

    model: "FlowModel"
    method: str
    workdir: pathlib.Path
    grid_power: float
    num_samples: int
    weights: str

    def points(self, open_tokens: int) -> Iterator[tuple[Point, Way]]:
        """Every way of writing so many tokens."""
        length = self.model.config.data.length
        for way in ways(self.model.config, self.grid_power):
            only = self.model.sampler(way.sampler)[0].steps_for(length)
            for evaluations in way.numbers(open_tokens, only):
                yield Point(self.method, way.name, evaluations), way

    def tokens(self, point: Point, way: Way, asked: "Task | None" = None) -> np.ndarray:
        """int32 (N, L), from their file if they are there."""
        import jax.numpy as jnp

        from flm_jax.evals import artefact
        from flm_jax.samplers.base import Given

        count = self.num_samples if asked is None else len(asked.tokens_NL)
        origin = {
            "weights_sha256": self.weights,
            "sampler": way.sampler,
            "knobs": dict(way.knobs),
            "options": dict(way.options),
            "sampler_steps": point.evaluations,
            "given": asked is not None,
        }
        words = ("given" if asked else "texts", *way.name.split(), f"{point.evaluations:03d}")
        path = self.workdir / "proof" / f"{'_'.join(words)}.jsonl"
        with contextlib.suppress(UserError):  # not there, or not whole
            stored = artefact.read(path, list(origin))
            if len(stored.texts) == count and not artefact.differences(stored.origin, origin):
                return stored.tokens_NL
        drawing: dict[str, Any] = {"sampler": way.sampler, "sampler_options": dict(way.options)}
        drawing |= {"batch_size": count, **way.knobs}
        if asked is not None:
            drawing["given"] = Given(jnp.asarray(asked.tokens_NL), jnp.asarray(asked.given_NL))
        samples = self.model.generate(1 if asked else count, point.evaluations, **drawing)
        made = artefact.Artefact(origin, samples.tokens, samples.texts, samples.seconds)
        artefact.write(path, made, evaluations=samples.evaluations)
        return samples.tokens


def texts(writer: Writer, language: str, data: "Data", possible: int) -> Measured:
    """Texts from nothing, beside real ones and those of samplers without a network."""
    from flm_jax.evals.comparison import Comparison, Written, training_rows
    from flm_jax.evals.truth import Truth

    length = data.rows["train"].length
    points = list(writer.points(length))
    written = [
        Written(point.curve, point.evaluations, writer.tokens(point, way), 0.0)
        for point, way in points
    ]
    documents = data.corpus.source("train")
    truth = Truth(data.tokenizer, training_rows(data), documents)
    rows = Comparison(data.tokenizer, length, data, None, [truth]).table(written)["rows"]
    values = {point: row["values"] for (point, _), row in zip(points, rows, strict=False)}
    values |= {Point(row["name"], "", 0): row["values"] for row in rows if row["kind"] != "model"}
    return Measured(language, VALID, length, values, possible)


def answers(writer: Writer, name: str, asked: "Task") -> Measured:
    """Held-out texts of which the first part is given."""
    open_tokens = int((~asked.given_NL).sum(axis=1).max())
    right = asked.columns[0].key
    values = {
        point: {RIGHT: asked.check(writer.tokens(point, way, asked))[right]}
        for point, way in writer.points(open_tokens)
    }
    return Measured(name, RIGHT, open_tokens, values)
