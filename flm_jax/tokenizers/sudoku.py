"""The twelve tokens of the published Sudoku rows: 0 to 9 for cells, a row's end, and BOS."""

import dataclasses
import os
from collections.abc import Iterable

from flm_jax import errors
from flm_jax.tokenizers import base

ROW_END, BOS = 10, 11
_CHARACTERS = "0123456789\n="
_IDS = {character: i for i, character in enumerate(_CHARACTERS)}


class SudokuTokens(base.Tokenizer):
    """A character of "0123456789", line break and "=" each; "=" is BOS, which stands in rows twice.

    `decode` omits a BOS at the beginning only. Published rows have neither EOS nor padding.
    """

    name = "sudoku"
    vocab_size = len(_CHARACTERS)
    bos_id = BOS
    eos_id = pad_id = None

    @property
    def fingerprint(self) -> str:
        return base.sha256(self.name, _CHARACTERS)

    def encode(self, text: str) -> list[int]:
        try:
            return [_IDS[character] for character in text]
        except KeyError as error:
            raise errors.UserError(
                f"{error.args[0]!r} is no character of a Sudoku; write digits, 0 for an empty "
                "cell, a line for each row, and = between puzzle and solution"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        text = "".join(_CHARACTERS[int(i)] for i in ids)
        return text.removeprefix("=")

    def piece(self, token: int) -> str:
        return "[BOS]" if token == self.bos_id else _CHARACTERS[int(token)]

    def save(self, folder: str | os.PathLike) -> None:
        base.save_files(folder, {"name": self.name, "fingerprint": self.fingerprint}, {})


@dataclasses.dataclass(frozen=True)
class SudokuTokensRecipe(base.Recipe):
    """There is nothing to choose."""

    def build(
        self, documents: base.Documents | None = None, cache_dir: str = "", fingerprint: str = ""
    ) -> SudokuTokens:
        """The text is not looked at."""
        del documents
        return SudokuTokens()

    @classmethod
    def from_files(cls, folder: str | os.PathLike, meta: base.Meta) -> SudokuTokens:
        return SudokuTokens()
