"""Reads files of samples, measures them once, and writes the report: it never samples or trains.

reference = measuring.reference(data, cache, judges=["gpt2-large"])
found = [measuring.measure(one, reference) for one in drawn]  # again: from the cache
points = frontier.choose(found, measuring.real(reference))    # worth a second pass
measuring.report(folder, drawn, reference)                    # results.json and the rest
measuring.render(folder)                                      # the same from results.json
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flm_jax.data import Data
from flm_jax.data.synthetic import Language
from flm_jax.evals.base import Judge
from flm_jax.lab.compare.measured import Measured
from flm_jax.lab.compare.results import Drawn
from flm_jax.tokenizers import Tokenizer

Latencies = Mapping[tuple[str, int], float]  # (method, evaluations) -> milliseconds a sample


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
    """

    tokenizer: Tokenizer
    judges: Mapping[str, Judge]
    real_rows: np.ndarray
    other_rows: np.ndarray
    train_rows: np.ndarray
    language: Language | None
    exact: bool
    cache: pathlib.Path


def reference(
    data: Data,
    cache: pathlib.Path,
    *,
    judges: Sequence[str] = (),
    truth: str | None = None,
    count: int = 1024,
) -> Reference:
    """The reference of a corpus.

    Judges are, in this order: the exact truth where there is one (the model that the rows were
    drawn from or `truth`, or the synthetic language), the given ones (`inference.truths.load_truth`
    says what they may be), and a Kneser-Ney 5-gram model of the training rows.

    Args:
      cache: folder for measurements of real text.
      count: rows of real text to measure; half of what there is if there are fewer than two times
        as many.

    Raises UserError for a judge that cannot be read.
    """
    raise NotImplementedError


def measure(drawn: Drawn, reference: Reference) -> Measured:
    """Every metric of one file of samples.

    They are kept beside it (`FILE.measures.npz`) under its SHA-256 and the fingerprint of whoever
    judged: a second call reads them, and another judge measures only what is new.

    Raises UserError if the file is damaged, or its tokens are not those of the reference.
    """
    raise NotImplementedError


def real(reference: Reference) -> Measured:
    """The same of real text, from the cache if it is there."""
    raise NotImplementedError


def report(
    folder: pathlib.Path,
    drawn: Sequence[Drawn],
    reference: Reference,
    *,
    title: str = "",
    about: Mapping[str, Any] | None = None,
    latencies: Latencies | None = None,
) -> dict[str, Any]:
    """Measures what is not measured yet, and writes results.json and all that `render` makes of it.

    Args:
      folder: of the comparison; names of sample files in results.json are relative to it.
      drawn: all there is; of several files of one point and seed the largest counts.
      about: plain JSON facts for the report: budget, hardware, minutes of training, versions.
      latencies: milliseconds a sample by (method, evaluations), where they were measured.

    Returns: what results.json holds.
    """
    raise NotImplementedError


def render(folder: pathlib.Path) -> list[pathlib.Path]:
    """report.html, tables.md, tables.tex and pictures from results.json alone; measures nothing.

    Raises UserError if there is no results.json of a version that this can read.
    """
    raise NotImplementedError
