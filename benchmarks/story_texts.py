"""Whole sentences from rows of `flm prepare --truth`: the text that the shipped models learn.

    python benchmarks/story_texts.py ROWS [ROWS ...] FOLDER

Each row is decoded, and what stands behind its last whole sentence is cut off. Writes
FOLDER/train.jsonl and FOLDER/valid.jsonl; a text that is in both is left out of train.
"""

import json
import pathlib
import re
import sys

from flm_jax.data.prepared import Prepared

SENTENCE_END = re.compile(r'[.!?]"?(?=\s|$)')


def whole_sentences(text: str) -> str:
    """What stands up to the end of the last sentence, blanks made single; may be empty."""
    text = " ".join(text.split())
    ends = [found.end() for found in SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else ""


def texts(folder: str, split: str) -> list[str]:
    cut = (whole_sentences(text) for text in Prepared(folder).source(split))
    return [text for text in cut if text]


def write(path: pathlib.Path, lines: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), "utf-8")


def main(*arguments: str) -> None:
    *rows, folder = arguments
    made = pathlib.Path(folder)
    made.mkdir(parents=True, exist_ok=True)
    valid = texts(rows[0], "valid")
    held_out = set(valid)
    train = [text for row in rows for text in texts(row, "train") if text not in held_out]
    write(made / "train.jsonl", train)
    write(made / "valid.jsonl", valid)
    print(f"{len(train):,} texts to train on, {len(valid):,} held out")


if __name__ == "__main__":
    main(*sys.argv[1:])
