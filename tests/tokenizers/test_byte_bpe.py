"""Byte-level BPE: any text comes back, training is repeatable, mistakes get a sentence."""

import pickle

import numpy as np
import pytest
from recipes import make_tokenizer

from flm_jax import data, errors, tokenizers
from flm_jax.tokenizers.byte_bpe import ByteBpe

TEXTS = [f"the cat number {i} sat on the mat, number {i * i}\n" for i in range(300)]
SECTION = {"name": "byte_bpe", "options": {"vocab_size": 400}}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(SECTION, lambda: TEXTS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        " the  cat\n\n\tsat",
        "[BOS] and [PAD]",
        "naïve \N{SNOWMAN} \U0001f600 \0 \x7f",
        *TEXTS[:5],
    ],
)
def test_every_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and tokenizer.encode_batch([text]) == [ids]
    assert all(3 <= i < tokenizer.vocab_size for i in ids)


def test_merges_are_learnt_and_specials_are_not_text(tokenizer):
    assert tokenizer.vocab_size == 400
    assert len(tokenizer.encode(TEXTS[7])) < len(TEXTS[7]) / 3
    ids = np.array([1, *tokenizer.encode("the cat"), 2, 0], np.uint16)
    assert tokenizer.decode(ids) == "the cat"
    assert [tokenizer.piece(i) for i in range(3)] == ["[PAD]", "[BOS]", "[EOS]"]
    assert all(isinstance(tokenizer.piece(i), str) for i in range(400))
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a?b")


def test_copies_are_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = make_tokenizer(SECTION, lambda: list(TEXTS))
    for other in (pickle.loads(pickle.dumps(tokenizer)), tokenizers.load(tmp_path), again):
        assert other.fingerprint == tokenizer.fingerprint
        assert other.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
    fewer = make_tokenizer(SECTION, lambda: [*TEXTS, "x y z " * 500])
    assert fewer.fingerprint != tokenizer.fingerprint


def test_one_option_away_for_a_corpus_and_cached(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("".join(TEXTS))
    section = {"name": "text_files", "length": 16, "options": {"path": str(tmp_path / "a.txt")}}
    loaded = data.load_data(section, SECTION, tmp_path)
    text = loaded.tokenizer.decode(loaded.rows["train"][0])
    assert text in "".join(line.strip() for line in TEXTS)
    (path,) = (tmp_path / "byte_bpe").iterdir()
    path.write_text("{}")
    again = data.load_data(section, SECTION, tmp_path)
    assert again.tokenizer.fingerprint == loaded.tokenizer.fingerprint
    monkeypatch.setattr(tokenizers.ByteBpeRecipe, "_train", lambda *_: pytest.fail("trained again"))
    assert data.load_data(section, SECTION, tmp_path).rows == loaded.rows


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"vocab_size": 100}, r"vocab_size is 100, but .* need at least 259"),
        (
            {"vocab_size": 9000},
            r"vocab_size is 9000, .* at most \d+ pieces .* set vocab_size to \d+",
        ),
        ({"min_count": 0}, "min_count is 0, but must be at least 1"),
    ],
)
def test_mistakes(options, sentence):
    with pytest.raises(errors.UserError, match=sentence):
        make_tokenizer({"name": "byte_bpe", "options": options}, lambda: TEXTS)


def test_damaged_files(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    file = tmp_path / "byte_bpe.json"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(errors.UserError, match=r"byte_bpe\.json is damaged"):
        tokenizers.load(tmp_path)
    with pytest.raises(errors.UserError, match="vocabulary is not one of a byte_bpe tokenizer"):
        ByteBpe(["a", "b"], [])
