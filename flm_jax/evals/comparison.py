"""Samples of a model beside n-gram samplers and held-out text, with every metric at hand."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from flm_jax.data import Data, fixed_batch
from flm_jax.data.synthetic import Documents
from flm_jax.evals import BASELINES, gpt2
from flm_jax.evals import base as evals
from flm_jax.evals.artefact import Artefact
from flm_jax.evals.base import Evaluator
from flm_jax.evals.generative_perplexity import GenerativePerplexity
from flm_jax.evals.sample_entropy import SampleEntropy
from flm_jax.evals.text_statistics import TextStatistics
from flm_jax.evals.truth import Truth
from flm_jax.tokenizers import Tokenizer

SEED = 0  # of n-gram samplers and of the held-out rows
_TIME = evals.Column(
    "ms_per_sample", "ms / sample", "Wall time per sample, without compilation.", "lower"
)


def table(
    tokenizer: Tokenizer,
    found: Mapping[int, Artefact],
    data: Data | None,
    scorer: gpt2.Scorer | None,
) -> evals.Results:
    """{"columns", "rows"} of `evals.table` for samples by number of steps.

    With `data`: text statistics, and rows for n-gram samplers and held-out text, of as many tokens.
    With `scorer`: generative perplexity.
    """
    named = [(f"{n} step{'s' * (n > 1)}", "model", a.tokens_NL) for n, a in found.items()]
    count, length = named[0][2].shape
    evaluators: list[Evaluator] = [SampleEntropy()]
    if data is not None:
        train_rows = np.asarray(data.rows["train"][: evals.TRAINING_ROWS])
        documents = data.corpus.source("train")
        own = Truth if isinstance(documents, Documents) else TextStatistics
        evaluators = [own(tokenizer, train_rows, documents)]
        for name, sampler in BASELINES.items():
            rows = sampler(train_rows, count, length, SEED)
            named.append((f"{name} sampler", "yardstick", rows))
        held_out = fixed_batch(data.rows["valid"], count, SEED)["tokens"]
        named.append(("held-out data", "data", held_out))
    if scorer is not None:
        evaluators.append(GenerativePerplexity(scorer, tokenizer))
    measured = evals.table(evaluators, named)
    for row, stored in zip(measured["rows"], found.values(), strict=False):
        row["values"][_TIME.key] = 1000 * stored.seconds / len(stored.texts)
    columns = {column["key"]: column for column in measured["columns"]}  # an entropy may come twice
    return {"columns": [*columns.values(), dataclasses.asdict(_TIME)], "rows": measured["rows"]}
