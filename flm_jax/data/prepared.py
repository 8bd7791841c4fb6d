"""Rows that were prepared elsewhere: train where the text itself is not."""

import functools
import pathlib
from collections.abc import Sequence

from flm_jax import config, errors, tokenizers
from flm_jax.data import base, statistics
from flm_jax.data.packing import PACKINGS
from flm_jax.data.rows import Rows, prepared_below
from flm_jax.host import folders


class Prepared(base.Corpus):
    """Folders of `flm prepare`, copied from another machine, with the tokenizer in them.

    The documents of this corpus are the texts of the rows.
    """

    name = "prepared"
    kind = "rows that flm prepare made"
    licence = "as that of the text they were made from"

    def __init__(self, path: str | Sequence[str] = ()):
        """Opens and checks the folders.

        Args:
          path: the --data_dir of prepare, or the folders of single splits.

        Raises:
          UserError: a folder without rows, or damaged; two of one split; different tokenizers.
        """
        if not path:
            raise errors.UserError(
                "data set 'prepared' needs options.path: the --data_dir of flm prepare"
            )
        given = [path] if isinstance(path, (str, pathlib.PurePath)) else list(path)
        found: dict[str, Rows] = {}
        for folder in given:
            for rows in prepared_below(folders.expanded(folder)):
                other = found.setdefault(rows.manifest["split"], rows)
                if other.path != rows.path:
                    raise errors.UserError(
                        f"{other.path} and {rows.path} both hold the split "
                        f"{rows.manifest['split']!r}; set options.path to the folders you mean"
                    )
        self._rows = found
        self.splits = tuple(split for split in base.SPLITS if split in found)
        for rows in found.values():
            statistics.check_tokenizer(rows, self.tokenizer, "the tokenizer of the other splits")

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """The one that all rows were made with."""
        return statistics.tokenizer_of(next(iter(self._rows.values())))

    def source(self, split: str) -> Sequence[str]:
        base.check_split(self, split)
        return _Texts(self._rows[split], self.tokenizer)

    def fingerprint(self, split: str) -> str:
        base.check_split(self, split)
        return self._rows[split].fingerprint

    def describe(self) -> dict:
        """See `Corpus.describe`; nobody has counted the characters."""
        counts = {split: (self._rows[split].manifest["documents"], None) for split in self.splits}
        return base.description(self, counts)

    def rows(self, split: str, section: config.DataConfig) -> Rows:
        """The rows of a split, if they are what the data section of a config asks for.

        Raises:
          UserError: there is no such split, or the rows have another length or packing.
        """
        base.check_split(self, split)
        rows = self._rows[split]
        asked: dict[str, int | str] = {"length": section.length}
        if rows.manifest["packing"] in PACKINGS:  # rows drawn from a model leave nothing to choose
            asked["packing"] = section.packing
        for key, value in asked.items():
            if rows.manifest[key] != value:
                raise errors.UserError(
                    f"{rows.path} was prepared with data.{key}={rows.manifest[key]}, but the "
                    f"config has {value}; set data.{key}={rows.manifest[key]}"
                )
        return rows

    def check_tokenizer(
        self, section: config.TokenizerConfig, given: tokenizers.Tokenizer | None
    ) -> None:
        """Raises UserError unless the rows were made with the tokenizer that is asked for.

        Args:
          section: of the config; its name may be "".
          given: of a checkpoint; then the section does not count.
        """
        first = next(iter(self._rows.values()))
        if given is not None:
            statistics.check_tokenizer(first, given, "the tokenizer of the model")
            return
        name, size = section.name, section.options.get("vocab_size")
        ours = self.tokenizer
        if name and name != ours.name or size and int(size) != ours.vocab_size:
            wanted = f"{name}, {size} ids" if size else name
            raise errors.UserError(
                f"{first.path} was made with tokenizer {ours.name} ({ours.vocab_size} ids, "
                f"fingerprint {ours.fingerprint[:12]}), but the config has tokenizer {wanted}; "
                "correct the config, or prepare the text again"
            )


class _Texts(base.Lazy):
    def __init__(self, rows: Rows, tokenizer: tokenizers.Tokenizer):
        self._rows, self._tokenizer = rows, tokenizer

    def __len__(self) -> int:
        return len(self._rows)

    def document(self, number: int) -> str:
        return self._tokenizer.decode(self._rows[number])
