"""TinyGSM: questions of school arithmetic, and Python programs that answer them.

A row is `[BOS] question separator program [EOS] [PAD] ...` with data.packing=one_per_row_short
(what is too long is left out, as published) and data.length=512; BOS, question and separator are
given. The published split is drawn after that filter, ours by the hash of the question, so that a
question never changes sides.
"""

import pathlib

from flm_jax import errors
from flm_jax.data.published import base as published
from flm_jax.data.tasks import questions


class TinyGsm(questions.Questions):
    """The columns `question` and `code` of Parquet, Arrow or JSON lines files, all in `path`."""

    name = "tinygsm"
    kind = "school arithmetic with Python programs, by GPT-3.5"
    licence = "MIT"
    wanted = "Parquet, Arrow or JSON lines files with `question` and `code`"
    address = "https://huggingface.co/datasets/TinyGSM/TinyGSM"
    hub_names = ("TinyGSM/TinyGSM",)
    distinct = False
    keys = ("question", "code")

    def __init__(
        self, path: str = "", separator: str = questions.SEPARATOR, valid_share: float = 0.01
    ):
        """See `Questions`; `valid_share` of the questions are held out, 0 for none."""
        if not 0 <= valid_share < 1:
            raise errors.UserError(
                f"options.valid_share is {valid_share}, but must be from 0 to below 1"
            )
        self._valid_share = float(valid_share)
        super().__init__(path, separator=separator)

    def recognise(self, place: pathlib.Path) -> published.Parts | None:
        found = published.below(place, *questions.ENDINGS)
        sides = ("train", "valid") if self._valid_share else ("train",)
        return {
            side: tuple(questions.Pairs(path, self.keys, self._valid_share, side) for path in found)
            for side in sides
            if found
        } or None
