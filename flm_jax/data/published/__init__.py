"""Published corpora, each in the layouts in which it is handed out; one file and one row each.

../pieces.py reading files, and cutting them into documents
streams.py   documents of parts as a sequence that is never held in memory
files.py     parts: lines, stories, archives
columns.py   parts: Parquet and Arrow (optional: pyarrow)
base.py      where files are looked for, downloads, what a corpus promises
"""

from flm_jax.data.published.huggingface import HuggingFace
from flm_jax.data.published.jsonl import Jsonl
from flm_jax.data.published.lm1b import Lm1b
from flm_jax.data.published.openwebtext import OpenWebText
from flm_jax.data.published.ptb import Ptb
from flm_jax.data.published.text8 import Text8
from flm_jax.data.published.tfds import Tfds
from flm_jax.data.published.tinystories import TinyStories
from flm_jax.data.published.wikitext import WikiText2, WikiText103

PUBLISHED = {
    "lm1b": Lm1b,
    "openwebtext": OpenWebText,
    "text8": Text8,
    "wikitext2": WikiText2,
    "wikitext103": WikiText103,
    "tinystories": TinyStories,
    "ptb": Ptb,
    "jsonl": Jsonl,
    "huggingface": HuggingFace,
    "tfds": Tfds,
}

__all__ = ["PUBLISHED"]
