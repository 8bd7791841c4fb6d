"""Corpora, packed rows and batches.

base.py       what a corpus promises; derived splits; the cache folder
one file per corpus, one row per corpus in `DATASETS`; published/ has those with a name
packing.py    a split -> rows of one length on disk, made once; workers.py tokenises in processes,
              wrap.py cuts, shards.py writes so that a kill costs little, rows.py reads
pipeline.py   rows -> shuffled, sharded, resumable batches (grain); shuffle.py is the order
prepare.py    do it before training: flm prepare --config=...
inspect.py    look at a corpus: flm inspect --config=...
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from flm_jax import config, errors, tokenizers
from flm_jax.data.base import SPLITS, Corpus, cache_folder
from flm_jax.data.packing import Order, pack, prepare_split
from flm_jax.data.pipeline import Batches, fixed_batch
from flm_jax.data.prepared import Prepared
from flm_jax.data.published import PUBLISHED
from flm_jax.data.python_prose import PythonProse
from flm_jax.data.rows import Rows
from flm_jax.data.synthetic import Synthetic
from flm_jax.data.text_files import TextFiles
from flm_jax.data.unicode_names import UnicodeNames
from flm_jax.data.wrap import split_row

DATASETS: dict[str, type[Corpus]] = {
    "prepared": Prepared,
    "python_prose": PythonProse,
    "synthetic": Synthetic,
    "text_files": TextFiles,
    "unicode_names": UnicodeNames,
    **PUBLISHED,
}

__all__ = [
    "DATASETS",
    "SPLITS",
    "Batches",
    "Corpus",
    "Data",
    "Order",
    "Plan",
    "Rows",
    "TrainingText",
    "fixed_batch",
    "load_corpus",
    "load_data",
    "pack",
    "plan",
    "prepare_split",
    "split_row",
]

_KEYS = {
    "name": "",
    "length": 128,
    "packing": "wrap",
    "cache_dir": "",
    "num_workers": 0,
    "drop_remainder_every": 0,
    "tokenizer_documents": 100_000,
    "options": {},
}


@dataclasses.dataclass(frozen=True)
class Data:
    """What training needs to know about its text: `rows` holds one `Rows` per packed split."""

    corpus: Corpus
    tokenizer: tokenizers.Tokenizer
    rows: Mapping[str, Rows]


@dataclasses.dataclass(frozen=True)
class TrainingText:
    """The text a tokenizer is built from: at most `limit` documents, evenly spread; 0 = all."""

    corpus: Corpus
    split: str = "train"
    limit: int = 0

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) that stands for the text; cheaper than reading it."""
        facts = f"{self.corpus.fingerprint(self.split)} {self.limit}"
        return hashlib.sha256(facts.encode()).hexdigest()

    def __call__(self) -> Iterator[str]:
        texts: Sequence[str] = self.corpus.source(self.split)
        count = min(len(texts), self.limit or len(texts))
        return (self.corpus.detokenize(texts[i * len(texts) // count]) for i in range(count))


def load_corpus(data_section: Mapping) -> Corpus:
    """The corpus of a config's data section.

    Raises:
      UserError: unknown key, data set or option; a path without files.
    """
    section = _checked(data_section)
    return config.build(DATASETS, section["name"], section["options"], "data set")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a config asks to be packed: an `Order` per split, for the cache folder `folder`."""

    corpus: Corpus
    tokenizer: tokenizers.Tokenizer
    orders: Mapping[str, Order]
    folder: pathlib.Path


def plan(
    data_section: Mapping,
    tokenizer_section: Mapping,
    cache_dir: str | os.PathLike = "",
    splits: Sequence[str] = ("train", "valid"),
    tokenizer: tokenizers.Tokenizer | None = None,
) -> Plan:
    """Corpus and tokenizer as a config asks for them; a tokenizer may be trained here.

    Args:
      data_section: `{"name": "unicode_names", "length": 32, "options": {...}, ...}`; see `_KEYS`.
      tokenizer_section: `{"name": "sentencepiece", "options": {"vocab_size": 1024}}`.
      cache_dir: used when the section's own `cache_dir` is empty.
      splits: which splits to pack.
      tokenizer: take this one (of a checkpoint) and ignore `tokenizer_section`.

    Raises:
      UserError: anything wrong with the sections, the text or the cache folder.
    """
    section = _checked(data_section)
    folder = cache_folder(section["cache_dir"] or cache_dir)
    corpus = load_corpus(section)
    if isinstance(corpus, Prepared):
        raise errors.UserError(
            "data set 'prepared' is prepared already; look at it with flm inspect FOLDER"
        )
    if tokenizer is None:
        recipe = config.build(
            tokenizers.TOKENIZERS,
            tokenizer_section.get("name", ""),
            tokenizer_section.get("options") or {},
            "tokenizer",
        )
        text = TrainingText(corpus, limit=section["tokenizer_documents"])
        tokenizer = recipe.build(text, str(folder), text.fingerprint)
    orders = {
        split: Order(
            corpus,
            tokenizer,
            split,
            section["length"],
            section["drop_remainder_every"],
            section["packing"],
        )
        for split in splits
    }
    return Plan(corpus, tokenizer, orders, folder)


def load_data(
    data_section: Mapping,
    tokenizer_section: Mapping,
    cache_dir: str | os.PathLike = "",
    splits: Sequence[str] = ("train", "valid"),
    tokenizer: tokenizers.Tokenizer | None = None,
) -> Data:
    """Corpus, tokenizer and packed rows; what was prepared before, or by `prepare`, is found.

    The arguments and errors are those of `plan`.
    """
    if data_section.get("name") == Prepared.name:
        section, corpus = _checked(data_section), load_corpus(data_section)
        corpus.check_tokenizer(tokenizer_section, tokenizer)
        rows = {split: corpus.rows(split, section) for split in splits}
        return Data(corpus, corpus.tokenizer, rows)
    made = plan(data_section, tokenizer_section, cache_dir, splits, tokenizer)
    rows = {split: prepare_split(order, made.folder)[0] for split, order in made.orders.items()}
    return Data(made.corpus, made.tokenizer, rows)


def _checked(section: Mapping) -> dict:
    """The section with defaults filled in."""
    for key in section:
        if key not in _KEYS:
            raise errors.UserError(
                f"the data section has no key {key!r}; its keys are {', '.join(_KEYS)}"
            )
    return {**_KEYS, **section, "options": dict(section.get("options") or {})}
