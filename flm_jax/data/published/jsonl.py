"""JSON lines: one object per line, the text under one key."""

from collections.abc import Sequence

from flm_jax import errors
from flm_jax.data import paths, text_files

_ENDINGS = paths.zipped_too((".jsonl", ".json", ".ndjson"))


class Jsonl(text_files.TextFiles):
    """`text_files` for .jsonl, .json and .ndjson files only, plain or .gz."""

    name = "jsonl"
    kind = "the user's JSON lines"

    def __init__(
        self,
        path: str | Sequence[str] = (),
        valid_path: str | Sequence[str] = (),
        test_path: str | Sequence[str] = (),
        json_key: str = "text",
        bad_text: str = "stop",
        longest_document: int = 12_000_000,
        keep_indentation: bool = False,
    ):
        """Finds the files; see `TextFiles`.

        Raises:
          UserError: `path` is missing, finds no file, or a file has another ending.
        """
        if not path:
            raise errors.UserError(
                "data set 'jsonl' needs options.path: a .jsonl or .jsonl.gz file, a folder or a "
                "glob, for example --config.data.options.path=corpus.jsonl"
            )
        super().__init__(
            path,
            valid_path,
            test_path,
            json_key=json_key,
            bad_text=bad_text,
            longest_document=longest_document,
            format="jsonl",
            keep_indentation=keep_indentation,
        )
        for file in (file for files in self._files.values() for file in files):
            if not file.name.lower().endswith(_ENDINGS):
                raise errors.UserError(
                    f"{file} is none of {', '.join(_ENDINGS)}; rename it, or use "
                    "data.name=text_files (with options.format=jsonl for JSON lines)"
                )
