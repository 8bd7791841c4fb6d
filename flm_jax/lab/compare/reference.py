"""What samples of a comparison are held against: judges, and real text that nobody trained on."""

import dataclasses
import functools
import importlib.util
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from flm_jax.data import Data
from flm_jax.data.synthetic import Documents, Language
from flm_jax.errors import UserError
from flm_jax.evals import BASELINES, comparison, kneser_ney, language_judge
from flm_jax.evals.base import Featured, Judge
from flm_jax.evals.causal import first_token
from flm_jax.evals.copying import Copying
from flm_jax.evals.truth import product_of_marginals
from flm_jax.inference.truths import known_truth, load_truth
from flm_jax.tokenizers import Tokenizer
from flm_jax.tokenizers.base import sha256

COUNT = 1024
KNESER_NEY = "Kneser-Ney 5-gram"
_FITTED = 4_000_000  # tokens that the n-gram judge is fitted on


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """What samples are compared with.

    Attributes:
      tokenizer: of all samples.
      judges: who scores, by the name for tables; the first one's numbers are in the headlines.
      real_rows: int (R, L), real text that nothing was trained on: measured like samples.
      other_rows: int (R, L), as much real text again: what MAUVE compares with.
      train_rows: int (T, L), for copied n-grams and n-gram samplers.
      language: of a synthetic corpus with one document in a row; None for any other text.
      exact: whether the first judge is the truth itself.
      cache: folder for what was measured of the rows above (numbers only).
      bleu: self-BLEU, too, where its library is installed: a second for every file.
    """

    tokenizer: Tokenizer
    judges: Mapping[str, Judge]
    real_rows: np.ndarray
    other_rows: np.ndarray
    train_rows: np.ndarray
    language: Language | None
    exact: bool
    cache: pathlib.Path
    bleu: bool = True

    def reads(self, judge: str) -> bool:
        """Whether a judge reads the very tokens of the samples."""
        return self.judges[judge].tokenizer.fingerprint == self.tokenizer.fingerprint

    @functools.cached_property
    def fingerprints(self) -> Mapping[str, str]:
        """Of the judges, by name."""
        return {name: judge.fingerprint for name, judge in self.judges.items()}

    @functools.cached_property
    def copying(self) -> Copying:
        return Copying(self.tokenizer, self.train_rows)

    @property
    def has_bleu(self) -> bool:
        return self.bleu and importlib.util.find_spec("sacrebleu") is not None

    @functools.cached_property
    def train_sha256(self) -> str:
        return sha256(np.ascontiguousarray(self.train_rows).tobytes())

    @functools.cached_property
    def other_sha256(self) -> str:
        return sha256(np.ascontiguousarray(self.other_rows).tobytes())

    def featured(self) -> dict[str, Featured]:
        """The judges that have features."""
        found = self.judges.items()
        return {name: judge for name, judge in found if isinstance(judge, Featured)}

    def landmarks(self) -> dict[str, np.ndarray]:
        """Rows of samplers without a network, as many as of real text, by name."""
        count, length = self.real_rows.shape
        made = {}
        for name, draw in BASELINES.items():
            try:
                made[f"{name} sampler"] = draw(self.train_rows, count, length, comparison.SEED)
            except ValueError as error:  # rows without a common first token
                logging.warning("the landmark %s is left out: %s", name, error)
        if self.language is not None:
            made["product of marginals"] = product_of_marginals(
                self.train_rows, count, comparison.SEED
            )
        return made


def reference(
    data: Data,
    cache: pathlib.Path,
    *,
    judges: Sequence[str] = (),
    truth: str | None = None,
    count: int = COUNT,
) -> Reference:
    """The reference of a corpus.

    Judges are, in this order: the exact truth where there is one (the model that the rows were
    drawn from or `truth`, or the synthetic language), the given ones (`inference.truths.load_truth`
    says what they may be), and a Kneser-Ney 5-gram model of the training rows.

    Args:
      cache: folder for measurements of real text.
      count: rows of real text to measure; half of what there is if there are fewer than two times
        as many.

    Raises UserError for a judge that cannot be read, or that cannot read rows of that length.
    """
    tokenizer, train = data.tokenizer, data.rows["train"]
    named: dict[str, Judge] = {}
    documents = data.corpus.source("train")
    exact = known_truth(truth, data)
    language = language_judge.of_documents(documents, train.manifest["packing"], tokenizer)
    if exact is not None:
        named[exact.name] = exact
    elif language is not None:
        named[language.name] = language
    known = len(named) > 0
    for path in judges:
        judge = load_truth(path)
        name = next(n for n in (judge.name, path, f"{judge.name} again") if n not in named)
        named[name] = judge
    named[KNESER_NEY] = kneser_ney.fit(train[: max(1, _FITTED // train.length)], tokenizer)
    for name, judge in named.items():
        _check(name, judge, tokenizer, train.length)
    if exact is not None and exact.tokenizer.fingerprint == tokenizer.fingerprint:
        fresh = exact.sample(comparison.FRESH + np.arange(2 * count), train.length, comparison.SEED)
        real_rows, other_rows = fresh[:count], fresh[count:]
    else:
        valid = data.rows["valid"]
        count = min(count, len(valid) // 2)
        if count < 2:
            raise UserError(
                f"{len(valid)} rows of held-out text are too few to compare with; give at least 4"
            )
        order = np.random.default_rng(comparison.SEED).permutation(len(valid))
        real_rows, other_rows = valid[order[:count]], valid[order[count : 2 * count]]
    return Reference(
        tokenizer,
        named,
        real_rows,
        other_rows,
        comparison.training_rows(data),
        documents.language if isinstance(documents, Documents) and language else None,
        known,
        cache,
    )


def _check(name: str, judge: Judge, tokenizer: Tokenizer, length: int) -> None:
    if judge.tokenizer.fingerprint != tokenizer.fingerprint:
        first_token(judge.tokenizer)  # raises UserError
    elif 0 < judge.longest < length:
        raise UserError(
            f"the judge {name} reads rows of at most {judge.longest} tokens, but the samples have "
            f"{length}; give another judge, or none"
        )
