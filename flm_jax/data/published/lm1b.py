"""The One Billion Word Benchmark: sentences of news, shuffled."""

import pathlib
from collections.abc import Sequence

from flm_jax.data import detokenize
from flm_jax.data.published import base, files, streams, tfds
from flm_jax.host.download import Download

ARCHIVE = "1-billion-word-language-modeling-benchmark-r13output.tar.gz"
_TRAIN = "training-monolingual.tokenized.shuffled"
_TEST = "heldout-monolingual.tokenized.shuffled"
_TRAIN_FILES, _TEST_FILES = "news.en-[0-9]*", "news.en.heldout-*"


class Lm1b(base.Published):
    """Train and test as in TFDS and on the hub: all training files, all held-out files.

    Read from the archive as a stream (sentences in the archive's order), from its unpacked folder
    (files by name, the order on the hub), or from a folder that TFDS prepared. There is no official
    validation split; the official code validates on "test", so "valid" is the same here.
    """

    name = "lm1b"
    kind = "sentences of English news of 2007-2011, word-tokenised, shuffled"
    licence = "benchmark Apache-2.0; the sentences belong to their publishers, research use"
    wanted = f"{ARCHIVE}, its unpacked folder, or a folder prepared by TFDS"
    address = "https://www.statmt.org/lm-benchmark/" + ARCHIVE
    downloads = (
        Download(
            address,
            ARCHIVE,
            "01ba60381110baf7f189dfd2b8374de371e8c9a340835793f190bdae9e90a34e",
            1_792_209_805,
        ),
    )

    def detokenize(self, text: str) -> str:
        return detokenize.lm1b(text)

    def recognise(self, place: pathlib.Path) -> base.Parts | None:
        for archive in _archives(place):
            train, test = (files.TarLines(archive, f"{f}/news") for f in (_TRAIN, _TEST))
            return {"train": (train,), "valid": (test,), "test": (test,)}
        for folder in (place, place / ARCHIVE.removesuffix(".tar.gz")):
            train = sorted((folder / _TRAIN).glob(_TRAIN_FILES))
            test = sorted((folder / _TEST).glob(_TEST_FILES))
            if train and test:
                streams.refuse_copies(train)
                streams.refuse_copies(test)
                test = tuple(map(files.Lines, test))
                return {"train": tuple(map(files.Lines, train)), "valid": test, "test": test}
        prepared = tfds.prepared(place, "text", "lm1b")
        return prepared and {**prepared, "valid": prepared.get("test", ())}

    def _places(self):
        yield from super()._places()
        yield from tfds.usual_folders("lm1b")


def _archives(place: pathlib.Path) -> Sequence[pathlib.Path]:
    """The archive, if it is here; any .tar.gz that is named directly is taken for it."""
    if place.is_file():
        return [place] if place.name.endswith((".tar.gz", ".tgz", ".tar")) else []
    return [path for path in (place / ARCHIVE,) if path.is_file()]
