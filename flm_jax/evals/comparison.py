"""Samples of a model beside n-gram samplers and held-out text, with every metric at hand."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from flm_jax.data import Data, fixed_batch
from flm_jax.data.synthetic import Documents
from flm_jax.evals import BASELINES, gpt2, ngram, verdict
from flm_jax.evals import base as evals
from flm_jax.evals.artefact import Artefact
from flm_jax.evals.base import Evaluator, Judge, KnownTruth
from flm_jax.evals.copying import Copying
from flm_jax.evals.diversity import Diversity
from flm_jax.evals.generative_perplexity import GenerativePerplexity
from flm_jax.evals.judged import Judged
from flm_jax.evals.sample_entropy import SampleEntropy
from flm_jax.evals.text_statistics import TextStatistics
from flm_jax.evals.truth import Truth
from flm_jax.tokenizers import Tokenizer

SEED = 0  # of n-gram samplers, of the held-out rows and of fresh text
_FRESH = 1 << 30  # index of the first fresh row: beyond all splits of prepared rows
_ORDER, _JUDGED = 3, 4_000_000  # of the n-gram judge: its order, the tokens that it is fitted on
_TIME = evals.Column(
    "ms_per_sample", "ms / sample", "Wall time per sample, without compilation.", "lower"
)


def table(
    tokenizer: Tokenizer,
    found: Mapping[int, Artefact],
    data: Data | None,
    scorer: gpt2.Scorer | None,
    truth: KnownTruth | None = None,
) -> evals.Results:
    """{"columns", "rows", "verdict"} for samples by number of steps; see `evals.table`.

    With ``data``: text statistics, and rows for n-gram samplers and held-out text, of as many
    tokens. With ``scorer``: generative perplexity. With ``truth``: likelihoods under it, and a row
    of fresh text; without, likelihoods under an n-gram model of the training text. "verdict" has a
    sentence for each number of steps (`evals.verdict`), if there is real text to compare with.
    """
    named = [(f"{n} step{'s' * (n > 1)}", "model", a.tokens_NL) for n, a in found.items()]
    count, length = named[0][2].shape
    evaluators: list[Evaluator] = [SampleEntropy()]
    judge: Judge | None = truth
    real_rows = None  # not those that are measured beside the samples
    if data is not None:
        train_rows = np.asarray(data.rows["train"][: evals.TRAINING_ROWS])
        documents = data.corpus.source("train")
        own = Truth if isinstance(documents, Documents) else TextStatistics
        evaluators = [own(tokenizer, train_rows, documents)]
        for name, sampler in BASELINES.items():
            rows = sampler(train_rows, count, length, SEED)
            named.append((f"{name} sampler", "yardstick", rows))
        held_out = fixed_batch(data.rows["valid"], 2 * count, SEED)["tokens"]
        named.append(("held-out data", "data", held_out[:count]))
        if own is TextStatistics:
            evaluators.append(Copying(tokenizer, train_rows))
            judge = judge or ngram.fit(train_rows[: _JUDGED // length], _ORDER, tokenizer)
            real_rows = held_out[count:]
    if truth is not None and truth.tokenizer.fingerprint == tokenizer.fingerprint:
        fresh = truth.sample(_FRESH + np.arange(2 * count), length, SEED)
        named.append(("fresh truth", "data", fresh[:count]))
        real_rows = fresh[count:]
    evaluators.append(Diversity(tokenizer))
    if judge is not None:
        evaluators.append(Judged(judge, tokenizer, real_rows))
    if scorer is not None:
        evaluators.append(GenerativePerplexity(scorer, tokenizer))
    measured = evals.table(evaluators, named)
    for row, stored in zip(measured["rows"], found.values(), strict=False):
        row["values"][_TIME.key] = 1000 * stored.seconds / len(stored.texts)
    columns = {column["key"]: column for column in measured["columns"]}  # an entropy may come twice
    return {
        "columns": [*columns.values(), dataclasses.asdict(_TIME)],
        "rows": measured["rows"],
        "verdict": _verdict(measured["rows"]),
    }


def _verdict(rows: list[dict]) -> list[str]:
    """A sentence for each row of samples, beside the last row of real text."""
    points = {}
    for row in rows:
        nats, diversity = (row["values"].get(key) for key in ("judge_nats", "distinct_4"))
        if nats is not None and diversity is not None:
            points[row["name"]] = row["kind"], verdict.Point(row["name"], nats, diversity)
    real = [point for kind, point in points.values() if kind == "data"]
    if not real:
        return []
    return [
        f"{point.name}: {verdict.sentence(point, real[-1])}"
        for kind, point in points.values()
        if kind == "model"
    ]
