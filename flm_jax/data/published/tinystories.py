"""TinyStories: stories in the words of a small child, written by GPT-3.5 and GPT-4."""

import pathlib

from flm_jax.data.published import base, columns, files
from flm_jax.host.download import Download

_SEPARATOR = "<|endoftext|>"
_SITE = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/"
_VERSIONS = ("TinyStoriesV2-GPT4-{}.txt", "TinyStories-{}.txt", "{}.txt")


class TinyStories(base.Published):
    """A story per document; the second version (GPT-4 only) is preferred where both are there.

    The corpus has training and validation stories, no test split.
    """

    name = "tinystories"
    kind = "English stories for small children, by language models"
    licence = "CDLA-Sharing-1.0"
    wanted = "TinyStories-train.txt and TinyStories-valid.txt (or V2-GPT4, or Parquet files)"
    address = _SITE
    hub_names = ("roneneldan/TinyStories",)
    downloads = tuple(
        Download(_SITE + name, name)
        for name in ("TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt")
    )
    distinct = False

    def recognise(self, place: pathlib.Path) -> base.Parts | None:
        for version in _VERSIONS:
            train = base.first_of(place, version.format("train"))
            valid = base.first_of(place, version.format("valid"))
            if train and valid:
                paths = {"train": train, "valid": valid}
                return {
                    split: (files.Separated(path, _SEPARATOR),) for split, path in paths.items()
                }
        found = columns.shards(place) if place.is_dir() else {}
        return found if "train" in found and "valid" in found else None
