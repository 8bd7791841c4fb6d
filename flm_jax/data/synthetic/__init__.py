"""Synthetic languages of known truth: sample quality that can be proven without a judge.

One file per language, one row per language in `LANGUAGES`; `Synthetic` makes a corpus of any of
them. What a model writes is judged by `flm_jax.evals.truth`.

A sample is judged as one document, so train on rows of one document each:

    config.data.update(name="synthetic", packing="one_per_row", length=...)
    config.data.options = dict(language="brackets", length=12)
    config.tokenizer.name = "characters"
    config.evals = ("truth",)

city_pairs, addition and brackets have so few documents that every network knows them by heart: they
are smoke tests. addition3, brackets32 and large_grammar are the languages of `flm proof`.

The row length is that of the longest document + 2 (BOS, EOS) where all documents are equally long;
for the grammars take + 3, so that every row ends in padding.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from flm_jax import config, errors
from flm_jax.data import base
from flm_jax.data.synthetic.addition import Addition
from flm_jax.data.synthetic.addition3 import Addition3
from flm_jax.data.synthetic.brackets import Brackets, Brackets32
from flm_jax.data.synthetic.city_pairs import CityPairs
from flm_jax.data.synthetic.grammar import Grammar
from flm_jax.data.synthetic.language import Language
from flm_jax.data.synthetic.large_grammar import LargeGrammar

LANGUAGES: dict[str, type[Language]] = {
    "city_pairs": CityPairs,
    "addition": Addition,
    "brackets": Brackets,
    "grammar": Grammar,
    "addition3": Addition3,
    "brackets32": Brackets32,
    "large_grammar": LargeGrammar,
}

__all__ = ["LANGUAGES", "Documents", "Language", "Synthetic"]


class Documents(tuple[str, ...]):
    """Documents that know the language they are drawn from, for evaluators of the truth."""

    language: Language

    def __new__(cls, texts: Sequence[str], language: Language):
        made = super().__new__(cls, texts)
        made.language = language
        return made


class Synthetic(base.MemoryCorpus):
    """Independent draws from a language; the splits differ in their random numbers only.

    Documents of a small language therefore occur many times, and in all splits: held-out text tells
    how noisy numbers of true samples are, not whether a model generalises. A language that keeps
    documents back (`addition3`) has them, and only them, in its validation and test splits.

    Attributes:
      language: the `Language`, which knows the truth.
    """

    name = "synthetic"
    licence = "none needed: made by a program, contains nobody's text"

    def __init__(
        self,
        language: str = "city_pairs",
        documents: int = 20_000,
        held_out: int = 4_000,
        seed: int = 0,
        given: bool = False,
        **options: Any,
    ):
        """Nothing is drawn yet.

        Args:
          language: a name of `LANGUAGES`.
          documents: of the training split.
          held_out: documents of each of the validation and the test split.
          seed: the same seed gives the same documents.
          given: the left side of a document is given, and only its right side is learnt ("7+5=" of
            the language addition).
          options: those of the language: `tuples`, `words`; `digits`; `length`, `kinds`;
            `max_words`.

        Raises:
          UserError: an unknown language or option, or a number out of range.
        """
        self.language: Language = config.build(LANGUAGES, language, options, "language")
        for option, value in {"documents": documents, "held_out": held_out}.items():
            if value < 1:
                raise errors.UserError(f"options.{option} is {value}, but must be at least 1")
        if seed < 0:
            raise errors.UserError(f"options.seed is {seed}, but must be at least 0")
        if given and not self.language.given_until:
            raise errors.UserError(
                f"options.given=True asks for documents with a left side, but language "
                f"{language!r} has none; leave it out, or use addition"
            )
        self.has_given = given
        self.kind = f"synthetic language {self.language}, seed {seed}"
        self._counts = {"train": documents, "valid": held_out, "test": held_out}
        self._seed = seed

    def read(self) -> dict[str, Documents]:
        return {
            split: Documents(
                self.language.split(
                    np.random.default_rng([self._seed, number]), count, held_out=split != "train"
                ),
                self.language,
            )
            for number, (split, count) in enumerate(self._counts.items())
        }

    def parts(self, text: str) -> tuple[str, ...]:
        if not self.has_given:
            return (text,)
        left, end, right = text.partition(self.language.given_until)
        return left + end, right

    @functools.cached_property
    def _documents(self) -> dict[str, Documents]:
        return self.read()
