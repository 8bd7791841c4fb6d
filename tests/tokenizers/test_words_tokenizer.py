"""Words as tokens: round trips, files, unknown words and bad options."""

import json
import pickle

import numpy as np
import pytest
from recipes import make_tokenizer

from flm_jax import errors, tokenizers

TEXTS = ["new york city", "san diego bay", "new york city"]
SECTION = {"name": "whitespace_words"}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(SECTION, lambda: TEXTS)


def test_vocabulary_is_the_sorted_words_behind_four_specials(tokenizer):
    assert tokenizer.pieces == ("bay", "city", "diego", "new", "san", "york")
    assert tokenizer.vocab_size == 10
    assert tokenizer.encode("san bay") == [8, 4]
    pieces = [tokenizer.piece(i) for i in range(10)]
    assert pieces[:4] == ["[PAD]", "[BOS]", "[EOS]", " [UNK]"]
    assert pieces[4:] == [f" {word}" for word in tokenizer.pieces]  # can be read side by side


def test_text_comes_back_with_its_spaces_unified(tokenizer):
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        dressed = np.array([tokenizer.bos_id, *ids, tokenizer.eos_id, tokenizer.pad_id], np.uint16)
        assert tokenizer.decode(dressed) == text
    assert tokenizer.decode(tokenizer.encode("  new\n york\t")) == "new york"
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


def test_unknown_words_and_spelled_out_marks_are_unknown(tokenizer):
    assert tokenizer.encode("new [BOS] town") == [7, 3, 3]
    assert tokenizer.decode([7, 3]) == "new \N{REPLACEMENT CHARACTER}"
    marks = make_tokenizer(SECTION, lambda: ["[BOS] [EOS]"])
    assert marks.encode("[BOS]") == [4] and marks.decode([4]) == "[BOS]"


def test_rare_words_can_be_left_out():
    made = make_tokenizer({**SECTION, "options": {"min_count": 2}}, lambda: TEXTS)
    assert made.pieces == ("city", "new", "york")


def test_pickle_and_saved_folder_give_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    for other in (pickle.loads(pickle.dumps(tokenizer)), tokenizers.load(tmp_path)):
        assert other == tokenizer and other.fingerprint == tokenizer.fingerprint
        assert other.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
    (tmp_path / "words.json").write_text(json.dumps(["other"]))
    with pytest.raises(errors.UserError, match="words.json is damaged"):
        tokenizers.load(tmp_path)


def test_fingerprints_tell_where_words_end():
    one, two = (make_tokenizer(SECTION, lambda t=t: [t]) for t in ("ab c", "a bc"))
    letters = make_tokenizer({"name": "characters"}, lambda: ["a"])
    words = make_tokenizer(SECTION, lambda: ["a"])
    assert len({one.fingerprint, two.fingerprint, letters.fingerprint, words.fingerprint}) == 4


@pytest.mark.parametrize(
    ("options", "texts", "sentence"),
    [
        ({"min_count": 0}, TEXTS, "min_count is 0, but must be at least 1"),
        ({"min_count": 3}, TEXTS, r"no word occurs 3 times .* \(6 different words\); lower"),
        ({}, ["", " \n"], r"no word occurs 1 times .* \(0 different words\)"),
        ({"size": 3}, TEXTS, "'whitespace_words' has no option 'size'.*: min_count"),
    ],
)
def test_bad_options_get_a_sentence(options, texts, sentence):
    with pytest.raises(errors.UserError, match=sentence):
        make_tokenizer({**SECTION, "options": options}, lambda: texts)
