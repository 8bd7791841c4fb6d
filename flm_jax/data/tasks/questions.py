"""Questions with what answers them, from Parquet, Arrow or JSON lines: TinyGSM and GSM8K.

A document is the question, `MARK` and the answer, both stripped; it is tokenised in three pieces:
question, separator, answer, of which the first two are given.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator

from flm_jax import errors
from flm_jax.data import base
from flm_jax.data.published import base as published
from flm_jax.data.published import columns, files, streams

MARK = "\x1f"  # between question and answer in a document: ASCII's "unit separator", never in text
SEPARATOR = "\\n"  # the two characters backslash and n: so the published models were trained
_COLUMNS, _LINES = (".parquet", ".arrow"), (".jsonl", ".jsonl.gz", ".json")
ENDINGS = (*_COLUMNS, *_LINES)
_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The questions and answers of a file, or those on one side of a split: a `streams.Part`.

    Attributes:
      keys: the columns, or keys of a line, of question and answer.
      valid_share: share of the questions that are held out, by their hash.
      side: "train", "valid" or "" for both.
    """

    path: pathlib.Path
    keys: tuple[str, str]
    valid_share: float = 0.0
    side: str = ""

    def documents(self) -> Iterator[str]:
        lines = self.path.name.endswith(_LINES)
        for question, answer in self._lines() if lines else self._columns():
            streams.check_length(len(question) + len(answer), self.path, "a question")
            question = question.strip()
            if not self.side or self.side == _side(question, self.valid_share):
                yield document(question, answer)

    def fingerprint(self) -> str:
        facts = self.keys, self.valid_share, self.side
        return streams.combined("Pairs", *facts, streams.file_hash(self.path))

    def count(self) -> None:
        return None

    def _columns(self) -> Iterator[tuple[str, str]]:
        kind = columns.Parquet if self.path.suffix == ".parquet" else columns.Arrow
        yield from zip(
            *(kind(self.path, key).documents() for key in self.keys),
            strict=True,
        )

    def _lines(self) -> Iterator[tuple[str, str]]:
        with files.opened(self.path) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                    question, answer = (record[key] for key in self.keys)
                except (ValueError, KeyError, TypeError):
                    question = answer = None
                if not isinstance(question, str) or not isinstance(answer, str):
                    raise errors.UserError(
                        f"{self.path} line {number} is no JSON object with texts under "
                        f"{' and '.join(map(repr, self.keys))}; correct the file or options.path"
                    )
                yield question, answer


class Questions(published.Published, unfinished=True):
    """A corpus of such files; subclasses fill in what `Published` wants, and `keys`.

    Attributes:
      keys: the columns of question and answer.
      separator: what is written between them.
    """

    keys: tuple[str, str]
    has_given = True

    def __init__(self, path: str = "", download: bool = False, separator: str = SEPARATOR):
        """See `Published`.

        Args:
          separator: text between question and answer; "\\\\n" stands for the two characters that
            the published models were trained with, not for a line break.
        """
        if not separator:
            raise errors.UserError(
                "options.separator is empty, but it must tell where a question ends; leave it out "
                "for that of the published models"
            )
        self.separator = separator
        super().__init__(path, download)

    def fingerprint(self, split: str) -> str:
        return streams.combined(self.separator, super().fingerprint(split))

    def detokenize(self, text: str) -> str:
        return "".join(self.parts(text))

    def parts(self, text: str) -> tuple[str, ...]:
        question, _, answer = text.partition(MARK)
        return question, self.separator, answer

    def pairs(self, split: str) -> Iterator[tuple[str, str]]:
        """(question, answer) of every document of a split."""
        base.check_split(self, split)
        for text in self.source(split):
            question, _, answer = text.partition(MARK)
            yield question, answer


def document(question: str, answer: str) -> str:
    """The document of a question and its answer."""
    return f"{question.strip()}{MARK}{answer.strip()}"


def _side(question: str, valid_share: float) -> str:
    digest = hashlib.sha256(question.encode("utf-8", "surrogatepass")).digest()
    return "valid" if int.from_bytes(digest[:8], "little") < valid_share * 2**64 else "train"
