"""Samples of a model beside n-gram samplers and real text, with every metric at hand.

The end of a training and `flm evaluate` both show what `Comparison` finds: the pair of likelihood
and diversity first (`evals.verdict`), whatever other evaluators there are after it.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from flm_jax.data import Data
from flm_jax.data.synthetic import Documents
from flm_jax.errors import UserError
from flm_jax.evals import BASELINES, language_judge, ngram, ranges, verdict
from flm_jax.evals import base as evals
from flm_jax.evals.base import Evaluator, Judge, KnownTruth
from flm_jax.evals.causal import first_token
from flm_jax.evals.copying import Copying
from flm_jax.evals.diversity import Diversity
from flm_jax.evals.judged import Judged, Remembering
from flm_jax.evals.sample_entropy import SampleEntropy
from flm_jax.evals.text_statistics import TextStatistics
from flm_jax.evals.truth import Truth, product_of_marginals
from flm_jax.tokenizers import Tokenizer

SEED = 0  # of n-gram samplers, of the held-out rows and of fresh text
FRESH = 1 << 30  # index of the first fresh row: beyond all splits of prepared rows
_POOL = 6  # times as many rows of real text as samples, for its ranges
_ORDER, _JUDGED = 3, 4_000_000  # of the n-gram judge: its order, the tokens that it is fitted on
_TIME = evals.Column(
    "ms_per_sample", "ms / sample", "Wall time per sample, without compilation.", "lower"
)


@dataclasses.dataclass(frozen=True)
class Written:
    """Samples of a model at one operating point.

    Attributes:
      name: of their row: "8 steps".
      steps: evaluations of the network.
      tokens_NL: int32.
      seconds: that writing them took.
      method: points that differ in a knob only share it; "" = the name.
    """

    name: str
    steps: int
    tokens_NL: np.ndarray
    seconds: float
    method: str = ""


def standard(tokenizer: Tokenizer, data: Data | None) -> list[Evaluator]:
    """What there is to measure besides the pair, where nobody has chosen."""
    if data is None:
        return [SampleEntropy(), Diversity(tokenizer)]
    documents, train_rows = data.corpus.source("train"), training_rows(data)
    if isinstance(documents, Documents):
        return [Truth(tokenizer, train_rows, documents), Diversity(tokenizer)]
    found = [kind(tokenizer, train_rows, documents) for kind in (TextStatistics, Copying)]
    return [*found, Diversity(tokenizer)]


def training_rows(data: Data) -> np.ndarray:
    """The training rows that evaluators and baselines are fitted on, int32 (R, L)."""
    return np.asarray(data.rows["train"][: evals.TRAINING_ROWS])


class Comparison:
    """Measures samples of one model, with real text beside them.

    Everything that can be wrong is found when it is made, before samples are drawn.

    Args:
      tokenizer: of the samples.
      length: tokens of a sample.
      data: the training text, for n-gram samplers and held-out rows; None: left out.
      truth: who judges, and a row of fresh text if it has the same tokens. Without, the judge is
        the language of a synthetic corpus, else an n-gram model of the training text.
      others: evaluators besides the pair, in the order of their columns.
      splits: of real text, for the range of each metric (`evals.ranges`); 0 = none.

    Raises UserError if the truth cannot score rows of that length.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        length: int,
        data: Data | None,
        truth: KnownTruth | None,
        others: Sequence[Evaluator],
        splits: int = 0,
    ):
        self._splits = splits
        self._tokenizer, self._length, self._data = tokenizer, length, data
        given = [one for one in others if isinstance(one, Diversity)]
        self._diversity = given[0] if given else Diversity(tokenizer, bleu=False)
        self._others = list(others) if given else [self._diversity, *others]
        self._fresh = truth if truth is not None and _same_tokens(truth, tokenizer) else None
        if self._fresh is not None and 0 < self._fresh.longest < length:
            raise UserError(
                f"the truth {self._fresh.name} knows rows of at most {self._fresh.longest} tokens, "
                f"but the model writes {length}; give another --truth, or none"
            )
        if truth is not None:
            first_token(truth.tokenizer)  # raises UserError
        self._judge: Judge | None = truth
        if self._judge is None and data is not None:
            self._judge = _judge_of(data, tokenizer)

    def table(self, found: Sequence[Written]) -> evals.Results:
        """{"columns", "rows", "judge", "verdict"}; see `evals.table`.

        Rows of samples have "steps" and "method", too. "verdict" are sentences (`evals.verdict`);
        where no verdict is possible, the one that says why.
        """
        count = len(found[0].tokens_NL)
        named = [(one.name, "model", one.tokens_NL) for one in found]
        real_rows = None  # not those that are measured beside the samples
        if self._data is not None:
            named += self._baselines(self._data, count)
            held_out, real_rows = _held_out(self._data, count)
            named.append(("held-out data", "data", held_out))
        if self._fresh is not None:
            fresh = self._fresh.sample(FRESH + np.arange(2 * count), self._length, SEED)
            named.append(("fresh truth", "data", fresh[:count]))
            real_rows = fresh[count:]
        judged = [Judged(self._judge, self._tokenizer, real_rows)] if self._judge else []
        measured = evals.table([*judged, *self._others], named)
        for row, one in zip(measured["rows"], found, strict=False):
            row |= {"steps": one.steps, "method": one.method or one.name}
            row["values"][_TIME.key] = 1000 * one.seconds / count
        columns = _ordered([*measured["columns"], dataclasses.asdict(_TIME)])
        limits, said = self._ranges(count, real_rows)
        for row in measured["rows"]:
            row["outside"] = ranges.sides(row["values"], limits)
            named = ranges.outside(row["values"], limits, columns)
            if row["kind"] == "model" and limits:
                listed = "; ".join(named) or "nothing"
                said.append(f"{row['name']}, outside the range of real text: {listed}")
        return {
            "columns": columns,
            "rows": measured["rows"],
            "judge": None if self._judge is None else self._judge.name,
            "ranges": {key: list(limits[key]) for key in limits},
            "verdict": [
                *(verdict.sentences(measured["rows"]) or [self._why_none(count)]),
                *said,
            ],
        }

    def _ranges(
        self, count: int, real_rows: np.ndarray | None
    ) -> tuple[dict[str, ranges.Range], list[str]]:
        """The range of each metric on real text; a sentence where there is none and should be."""
        if not self._splits or (self._data is None and self._fresh is None):
            return {}, []
        pool = self._pool(count)
        if len(pool) < 2 * count:
            many = f"two halves of {count} rows need {2 * count}, and there are {len(pool)}"
            return {}, [f"no range of real text: {many}"]
        fast = [one for one in self._others if not (one.costly or isinstance(one, Diversity))]
        fast.append(Diversity(self._tokenizer, group=self._diversity.group, bleu=False))
        if self._judge is not None:
            fast.append(Judged(Remembering(self._judge), self._tokenizer, real_rows))
        return ranges.of(fast, pool, count, self._splits, SEED), []

    def _pool(self, count: int) -> np.ndarray:
        """Real rows, none of which the evaluators have seen."""
        if self._data is not None:
            rows = self._data.rows["valid"]
            order = np.random.default_rng(SEED).permutation(len(rows))  # as `_held_out`
            return rows[np.concatenate([order[2 * count :], order[:count]])[: _POOL * count]]
        assert self._fresh is not None
        return self._fresh.sample(FRESH + 2 * count + np.arange(_POOL * count), self._length, SEED)

    def _baselines(self, data: Data, count: int) -> list[tuple[str, str, np.ndarray]]:
        rows = training_rows(data)
        named = [
            (f"{name} sampler", "yardstick", draw(rows, count, self._length, SEED))
            for name, draw in BASELINES.items()
        ]
        if isinstance(data.corpus.source("train"), Documents):
            marginals = product_of_marginals(rows, count, SEED)
            named.append(("product of marginals", "yardstick", marginals))
        return named

    def _why_none(self, count: int) -> str:
        if self._judge is None:
            why = "there is no training text and no --truth, so no judge and no real text"
        elif self._data is None and self._fresh is None:
            why = "the truth has other tokens, so there is no real text to compare with"
        elif self._length < 5:
            why = f"samples of {self._length} tokens have no four in a row behind BOS"
        else:
            group = self._diversity.group
            why = f"distinct-4 compares {group} samples with each other, and there are {count}"
        return f"no verdict: {why}"


def _same_tokens(judge: Judge, tokenizer: Tokenizer) -> bool:
    return judge.tokenizer.fingerprint == tokenizer.fingerprint


def _judge_of(data: Data, tokenizer: Tokenizer) -> Judge:
    """The language of a synthetic corpus; an n-gram model of any other training text."""
    rows, documents = data.rows["train"], data.corpus.source("train")
    exact = language_judge.of_documents(documents, rows.manifest["packing"], tokenizer)
    return exact or ngram.fit(rows[: _JUDGED // rows.length], _ORDER, tokenizer)


def _held_out(data: Data, count: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Held-out rows to show, repeated if there are too few, and up to as many others; None: none.

    Any other number of tokens than that of the samples would have another entropy.
    """
    rows = data.rows["valid"]
    order = np.random.default_rng(SEED).permutation(len(rows))
    rest = order[count : 2 * count]
    return rows[np.resize(order, count)], rows[rest] if len(rest) else None


def _ordered(columns: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """Each column once (an entropy may come twice), the pair first."""
    once = {str(column["key"]): column for column in columns}
    likelihood = next((key for key in verdict.LIKELIHOODS if key in once), None)
    first = [key for key in (likelihood, verdict.DIVERSITY) if key is not None]
    return [once[key] for key in first] + [c for key, c in once.items() if key not in first]
