"""Corpora, packed rows and batches.

base.py       what a corpus promises; derived splits; the cache folder
one file per corpus, one row per corpus in `DATASETS`; published/ has those with a name, tasks/
              those with a given part and an answer that can be checked
packing.py    a split -> rows of one length on disk, made once; workers.py tokenises in processes,
              packers.py and wrap.py cut, shards.py writes so that a kill costs little, rows.py
              reads
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
from flm_jax.data.short_stories import ShortStories
from flm_jax.data.synthetic import Synthetic
from flm_jax.data.tasks import TASKS
from flm_jax.data.text_files import TextFiles
from flm_jax.data.unicode_names import UnicodeNames
from flm_jax.data.wrap import split_row

DATASETS: dict[str, type[Corpus]] = {
    "prepared": Prepared,
    "python_prose": PythonProse,
    "short_stories": ShortStories,
    "synthetic": Synthetic,
    "text_files": TextFiles,
    "unicode_names": UnicodeNames,
    **PUBLISHED,
    **TASKS,
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
    "Synthetic",
    "TrainingText",
    "fixed_batch",
    "load_corpus",
    "load_data",
    "pack",
    "plan",
    "prepare_split",
    "split_row",
]


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


def load_corpus(section: config.DataConfig | Mapping) -> Corpus:
    """The corpus of a config's data section.

    Raises:
      UserError: unknown key, data set or option; a path without files.
    """
    section = config.resolve_section(config.DataConfig, section, "data")
    return config.build(DATASETS, section.name, section.options, "data set")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a config asks to be packed: an `Order` per split, for the cache folder `folder`."""

    corpus: Corpus
    tokenizer: tokenizers.Tokenizer
    orders: Mapping[str, Order]
    folder: pathlib.Path


def plan(
    data_section: config.DataConfig | Mapping,
    tokenizer_section: config.TokenizerConfig | Mapping,
    cache_dir: str | os.PathLike = "",
    splits: Sequence[str] = ("train", "valid"),
    tokenizer: tokenizers.Tokenizer | None = None,
) -> Plan:
    """Corpus and tokenizer as a config asks for them; a tokenizer may be trained here.

    Args:
      data_section: of a config, or a dict of what differs from its defaults, for example
        `{"name": "unicode_names", "length": 32}`.
      tokenizer_section: likewise, `{"name": "sentencepiece", "options": {"vocab_size": 1024}}`.
      cache_dir: used when the section's own `cache_dir` is empty.
      splits: which splits to pack.
      tokenizer: take this one (of a checkpoint) and ignore `tokenizer_section`.

    Raises:
      UserError: anything wrong with the sections, the text or the cache folder.
    """
    section = config.resolve_section(config.DataConfig, data_section, "data")
    folder = cache_folder(section.cache_dir or cache_dir)
    corpus = load_corpus(section)
    if isinstance(corpus, Prepared):
        raise errors.UserError(
            "data set 'prepared' is prepared already; look at it with flm inspect FOLDER"
        )
    if tokenizer is None:
        asked = config.resolve_section(config.TokenizerConfig, tokenizer_section, "tokenizer")
        recipe = config.build(tokenizers.TOKENIZERS, asked.name, asked.options, "tokenizer")
        text = TrainingText(corpus, limit=section.tokenizer_documents)
        tokenizer = recipe.build(text, str(folder), text.fingerprint)
    how = section.length, section.drop_remainder_every, section.packing
    orders = {split: Order(corpus, tokenizer, split, *how) for split in splits}
    return Plan(corpus, tokenizer, orders, folder)


def load_data(
    data_section: config.DataConfig | Mapping,
    tokenizer_section: config.TokenizerConfig | Mapping,
    cache_dir: str | os.PathLike = "",
    splits: Sequence[str] = ("train", "valid"),
    tokenizer: tokenizers.Tokenizer | None = None,
) -> Data:
    """Corpus, tokenizer and packed rows; what was prepared before, or by `prepare`, is found.

    The arguments and errors are those of `plan`.
    """
    section = config.resolve_section(config.DataConfig, data_section, "data")
    if section.name == Prepared.name:
        corpus = load_corpus(section)
        assert isinstance(corpus, Prepared)  # by its name
        corpus.check_tokenizer(
            config.resolve_section(config.TokenizerConfig, tokenizer_section, "tokenizer"),
            tokenizer,
        )
        rows = {split: corpus.rows(split, section) for split in splits}
        return Data(corpus, corpus.tokenizer, rows)
    made = plan(section, tokenizer_section, cache_dir, splits, tokenizer)
    rows = {split: prepare_split(order, made.folder)[0] for split, order in made.orders.items()}
    return Data(made.corpus, made.tokenizer, rows)
