"""Text becomes the same tokens in JavaScript and in Python: 1,000 strings for each tokenizer."""

import random
import unicodedata

import pytest
from javascript import ask

from flm_jax.demo import tokenizer as demo_tokenizer
from flm_jax.tokenizers import TOKENIZERS

WORDS = "naïve Straße été 東京 día don't 1,234 The".split()
NAMES = [unicodedata.name(chr(i), "").lower() for i in range(0x20, 0x2000)]
ODD = " \t\n\u00a0\u2003\u2028\u0085\x1c▁\ufdd0\ud800\udc00\0<>&\"'\\{}[]\U0001f600\U0001d54fé́ß�"
COUNT = 1000


def lines(seed, count):
    draw = random.Random(seed)
    return [
        " ".join([*draw.choices(NAMES, k=draw.randint(1, 2)), draw.choice(WORDS)])
        for _ in range(count)
    ]


def strings():
    """Words, words broken by odd characters, and characters of all kinds."""
    draw, found = random.Random(1), lines(2, COUNT // 3)
    for text in lines(3, COUNT // 3):
        letters = list(text)
        for _ in range(draw.randint(1, 6)):
            letters.insert(draw.randint(0, len(letters)), draw.choice(ODD))
        found.append("".join(letters))
    while len(found) < COUNT - 4:
        letters = (
            chr(draw.choice((draw.randrange(0x250), draw.randrange(0x11000)))) for _ in "12345"
        )
        found.append("".join(x for x in letters if unicodedata.category(x) != "Cs"))
    return [*found, "", " ", "   ", "a  b "]


KINDS = {
    "characters": ("characters", {"min_count": 3}),
    "words": ("whitespace_words", {}),
    "unigram": ("sentencepiece", {"vocab_size": 600}),
    "rare": ("sentencepiece", {"vocab_size": 150, "character_coverage": 0.98}),
    "bytes": ("sentencepiece", {"vocab_size": 700, "byte_fallback": True}),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_thousand_strings(tmp_path, name):
    kind, options = KINDS[name]
    corpus = [*lines(0, 1500), "▁ is a sign", "▁▁"]
    made = TOKENIZERS[kind](**options).build(lambda: corpus)
    texts = strings()
    assert len(texts) == COUNT
    expected = made.encode_batch(texts)
    told = demo_tokenizer.described(made)
    [found] = ask(tmp_path, [{"what": "encode", "told": told, "texts": texts}])
    wrong = [(t, a, b) for t, a, b in zip(texts, found, expected, strict=True) if a != b]
    assert not wrong, wrong[:3]
    assert len({i for ids in expected for i in ids}) > 15


@pytest.mark.parametrize(
    "kind, options, why",
    [
        ("sentencepiece", {"vocab_size": 200, "model_type": "bpe"}, "of the type unigram"),
        ("byte_bpe", {"vocab_size": 300}, "The page has no byte_bpe tokenizer"),
    ],
)
def test_what_the_page_cannot_be_is_said(kind, options, why):
    made = TOKENIZERS[kind](**options).build(lambda: lines(0, 1500))
    assert why in demo_tokenizer.described(made)["why"]
