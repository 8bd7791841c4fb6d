"""40,000 short texts in the language of children's stories, which come with this package.

"Once upon a time, there was a little girl named Lily. She loved to play with her toys.": so narrow
a language that a small model writes it after minutes. Each text is two or three whole sentences.
"""

import gzip
import importlib.resources

from flm_jax.data import base

_FILE = "short_stories.txt.gz"  # a text in every line


class ShortStories(base.MemoryCorpus):
    """Texts drawn from a small language model and cut at the end of a sentence.

    They are as good as that model, stories260K, which has 260,032 parameters and learned from
    TinyStories: its sentences are right, its stories wander. benchmarks/story_texts.py made them.
    """

    name = "short_stories"
    kind = "texts that the language model stories260K has written, whole sentences"
    licence = "MIT (stories260K, of tinyllamas by Andrej Karpathy)"

    def read(self) -> dict[str, list[str]]:
        packed = (importlib.resources.files("flm_jax.data") / _FILE).read_bytes()
        texts = gzip.decompress(packed).decode("utf-8").splitlines()
        return base.split_by_hash((text, text) for text in texts)
