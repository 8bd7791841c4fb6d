"""Penn Treebank: Wall Street Journal sentences with a vocabulary of ten thousand words."""

import pathlib

from flm_jax.data import detokenize
from flm_jax.data.published import base, files

_SPLITS = ("train", "valid", "test")


class Ptb(base.Published):
    """The usual word-level form: lower case, rare words <unk>, numbers N; a sentence per document.

    The official recipe writes <unk> as "?" and N as 1 before tokenising.
    """

    name = "ptb"
    kind = "sentences of the Wall Street Journal, 10,000 words"
    licence = "text licensed by the LDC (Penn Treebank), research use; it may not be passed on"
    wanted = "ptb.train.txt, ptb.valid.txt and ptb.test.txt, or simple-examples.tgz"
    address = "the Linguistic Data Consortium, or whoever gave you simple-examples.tgz"

    def __init__(self, path: str = ""):
        """Finds the files; see `Published`. It is never downloaded: its licence forbids copies."""
        super().__init__(path)

    def detokenize(self, text: str) -> str:
        return detokenize.ptb(text)

    def recognise(self, place: pathlib.Path) -> base.Parts | None:
        found = {split: base.first_of(place, f"ptb.{split}.txt") for split in _SPLITS}
        if place.is_dir() and found["train"] and found["valid"]:
            return {split: (files.Lines(path),) for split, path in found.items() if path}
        archive = base.first_of(place, "simple-examples.tgz")
        if archive is None:
            return None
        members = {pathlib.PurePosixPath(name).name: name for name in files.members(archive)}
        return {
            split: (files.Lines(archive, members[f"ptb.{split}.txt"]),)
            for split in _SPLITS
            if f"ptb.{split}.txt" in members
        }
