"""Packed rows: content, cache hits, damage, and load_data that ties it together."""

import json
import pickle
import string
import types

import numpy as np
import pytest
from recipes import make_tokenizer

from flm_jax import data, errors
from flm_jax.data import base, packing, rows, workers, wrap


class Letters(base.MemoryCorpus):
    """`count` documents of letters; "valid" has a tenth of them."""

    name = "letters"

    def __init__(self, count: int = 200, shift: int = 0):
        self.count, self.shift = count, shift

    def read(self):
        texts = [
            "".join(chr(97 + (i * j + self.shift) % 26) for j in range(i % 9 + 1))
            for i in range(self.count)
        ]
        return {"train": texts, "valid": texts[: self.count // 10], "test": texts[:1]}

    def detokenize(self, text):
        return text.replace("a", "A")


@pytest.fixture(scope="module")
def tokenizer():
    texts = [chr(c) for c in range(97, 123)] + ["A"]
    return make_tokenizer({"name": "characters"}, lambda: texts)


def folders(cache):
    return sorted(path.name for path in (cache / "rows").iterdir())


def test_rows_are_the_wrapped_detokenised_documents(tokenizer, tmp_path):
    corpus = Letters()
    packed = data.pack(corpus, tokenizer, "train", 16, tmp_path)
    texts = [corpus.detokenize(text) for text in corpus.source("train")]
    expected = np.concatenate(
        list(wrap.wrap(map(tokenizer.encode, texts), 16, tokenizer.bos_id, tokenizer.eos_id))
    )
    np.testing.assert_array_equal(packed[:], expected)
    assert "A" in tokenizer.decode(packed[0]) and "a" not in tokenizer.decode(packed[0])
    assert len(packed) == len(expected) and packed.tokens == expected.size
    assert packed[3].dtype == packed[np.array([3, 1])].dtype == np.int32
    np.testing.assert_array_equal(packed[np.array([3, 1])], expected[[3, 1]])
    assert np.load(packed.path / "shard-00000.npy").dtype == np.uint16
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(packed))[5], expected[5])


def test_large_vocabularies_get_four_bytes(tmp_path):
    characters = "".join(map(chr, range(0x10000, 0x10000 + 70_000))) + string.ascii_letters
    big = make_tokenizer({"name": "characters"}, lambda: [characters])
    packed = data.pack(Letters(), big, "train", 16, tmp_path)
    assert np.load(packed.path / "shard-00000.npy").dtype == np.int32
    first = Letters().detokenize(Letters().source("train")[0])
    assert big.decode(packed[0]).startswith(first)


def test_second_call_is_a_cache_hit_and_each_change_is_a_miss(tokenizer, tmp_path, monkeypatch):
    first = data.pack(Letters(), tokenizer, "train", 16, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_write", lambda *_: pytest.fail("packed again"))
        again = data.pack(Letters(), tokenizer, "train", 16, tmp_path)
    assert again == first and len(folders(tmp_path)) == 1

    other = make_tokenizer({"name": "characters"}, lambda: ["abcdefghijklmnopqrstuvwxyz"])
    data.pack(Letters(), tokenizer, "train", 17, tmp_path)
    data.pack(Letters(), tokenizer, "train", 16, tmp_path, drop_remainder_every=50)
    data.pack(Letters(shift=1), tokenizer, "train", 16, tmp_path)
    data.pack(Letters(), other, "train", 16, tmp_path)
    data.pack(Letters(), tokenizer, "valid", 16, tmp_path)
    monkeypatch.setattr(packing, "_CODE_VERSION", 999)
    data.pack(Letters(), tokenizer, "train", 16, tmp_path)
    assert len(folders(tmp_path)) == 7  # and nothing temporary is left


DAMAGE = {
    "flip": r"shard-00000\.npy does not have the SHA-256 it was made with",
    "cut": r"shard-00000\.npy has [\d,]+ bytes of [\d,]+",
    "header": r"shard-00000\.npy has another header than it was made with",
    "shard missing": r"shard-00000\.npy is missing",
    "manifest edited": r"manifest\.json was changed after it was written",
    "manifest garbage": r"manifest\.json was changed after it was written",
    "manifest missing": r"manifest\.json is missing, so .* holds no prepared rows",
    "of other text": r"manifest\.json says corpus_fingerprint 'other' where",
    "of another version": r"has format 1, but this version of flm_jax reads format \d+; delete",
    "shard a folder": r"shard-00000\.npy cannot be read \(Is a directory\)",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_with_file_and_remedy(tokenizer, tmp_path, damage):
    packed = data.pack(Letters(), tokenizer, "train", 16, tmp_path)
    shard, manifest = packed.path / "shard-00000.npy", packed.path / "manifest.json"
    content = bytearray(shard.read_bytes())
    if damage in ("flip", "header"):
        content[-7 if damage == "flip" else 100] ^= 1
        shard.write_bytes(content)
    elif damage == "cut":
        shard.write_bytes(content[:-2])
    elif damage == "shard missing":
        shard.unlink()
    elif damage == "shard a folder":
        shard.unlink()
        shard.mkdir()
    elif damage == "of another version":
        manifest.write_text(json.dumps(rows.sign(packed.manifest | {"format_version": 1})))
    elif damage == "manifest edited":
        manifest.write_text(json.dumps(packed.manifest | {"rows": 8}))
    elif damage == "manifest garbage":
        manifest.write_text("[1, 2")
    elif damage == "manifest missing":
        manifest.unlink()
    else:
        manifest.write_text(
            json.dumps(rows.sign(packed.manifest | {"corpus_fingerprint": "other"}))
        )
    with pytest.raises(errors.UserError, match=DAMAGE[damage]) as caught:
        data.pack(Letters(), tokenizer, "train", 16, tmp_path)
    assert "to prepare it again" in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_rows_that_cannot_be_read_any_more(tokenizer, tmp_path):
    packed = data.pack(Letters(), tokenizer, "train", 16, tmp_path)
    (packed.path / "shard-00000.npy").unlink()
    with pytest.raises(errors.UserError, match=r"shard-00000\.npy cannot be read .*No such file"):
        packed[0]
    with pytest.raises(errors.UserError, match=r"shard-00000\.npy cannot be read .*No such file"):
        rows._token_hash(packed.path / "shard-00000.npy", None)  # gone while it is verified
    (packed.path / "manifest.json").unlink()
    (packed.path / "manifest.json").mkdir()
    with pytest.raises(errors.UserError, match=r"manifest\.json: Is a directory; make it readable"):
        rows.open_rows(packed.path)


def test_large_data_is_hashed_only_on_demand(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "_CHECKED_FULLY", 0)
    packed = data.pack(Letters(), tokenizer, "train", 16, tmp_path)
    rows.verify(packed)
    shard = packed.path / "shard-00000.npy"
    content = bytearray(shard.read_bytes())
    content[-7] ^= 1
    shard.write_bytes(content)
    data.pack(Letters(), tokenizer, "train", 16, tmp_path)
    with pytest.raises(errors.UserError, match="does not have the SHA-256"):
        rows.verify(packed)
    shard.write_bytes(content[:-2])
    with pytest.raises(errors.UserError, match=r"has [\d,]+ bytes of"):
        data.pack(Letters(), tokenizer, "train", 16, tmp_path)


def test_an_interrupted_run_leaves_no_rows(tokenizer, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(workers.Encode, "__call__", interrupted)
        data.pack(Letters(), tokenizer, "train", 16, tmp_path)
    assert folders(tmp_path) == []
    assert len(data.pack(Letters(), tokenizer, "train", 16, tmp_path))


def test_too_little_text_names_numbers_and_remedy(tokenizer, tmp_path):
    corpus = Letters()
    (text,) = corpus.source("test")
    tokens = len(text) + 1
    have = f"'test' split of 'letters' has 1 documents and {tokens} characters tokens"
    with pytest.raises(errors.UserError, match=have) as caught:
        data.pack(corpus, tokenizer, "test", 16, tmp_path)
    longest = int(str(caught.value).split("set data.length to ")[1].split()[0])
    assert len(data.pack(corpus, tokenizer, "test", longest, tmp_path)) == 1
    with pytest.raises(errors.UserError, match="not enough in any 2 documents for one row"):
        data.pack(corpus, tokenizer, "train", 64, tmp_path, drop_remainder_every=2)
    assert len(folders(tmp_path)) == 1


def test_bad_arguments_get_a_sentence(tokenizer, tmp_path):
    with pytest.raises(errors.UserError, match="length is 2, .* set data.length to 3 or more"):
        data.pack(Letters(), tokenizer, "train", 2, tmp_path)
    with pytest.raises(errors.UserError, match="no split 'dev'; it has train, valid, test"):
        data.pack(Letters(), tokenizer, "dev", 8, tmp_path)
    with pytest.raises(errors.UserError, match="'page' is not known; use wrap or one_per_row"):
        data.pack(Letters(), tokenizer, "train", 8, tmp_path, packing="page")
    with pytest.raises(errors.UserError, match="drop_remainder_every=2 has no meaning with"):
        data.pack(Letters(), tokenizer, "train", 8, tmp_path, 2, packing="one_per_row")
    unpadded = types.SimpleNamespace(name="gpt2", pad_id=None)
    with pytest.raises(errors.UserError, match="needs padding, but tokenizer 'gpt2' has no padd"):
        data.pack(Letters(), unpadded, "train", 8, tmp_path, packing="one_per_row")
    endless = types.SimpleNamespace(name="theirs", bos_id=1, eos_id=None)
    with pytest.raises(errors.UserError, match="tokenizer 'theirs' has no EOS; choose one that"):
        data.pack(Letters(), endless, "train", 8, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.UserError, match=r"cannot write packed rows to .*\$FLM_JAX_CACHE"):
        data.pack(Letters(), tokenizer, "train", 8, tmp_path / "file")


def test_cache_folder_prefers_argument_then_environment(monkeypatch):
    monkeypatch.setenv("FLM_JAX_CACHE", "/env")
    assert str(base.cache_folder("/given")) == "/given" and str(base.cache_folder()) == "/env"
    monkeypatch.delenv("FLM_JAX_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert base.cache_folder().parts[-2:] == (".cache", "flm_jax")
    assert "~" not in str(base.cache_folder("~/x"))


def test_training_text_is_evenly_spread_and_detokenised():
    corpus = Letters(100)
    text = data.TrainingText(corpus, limit=10)
    expected = [corpus.detokenize(t) for t in corpus.source("train")[::10]]
    assert list(text()) == list(text()) == expected
    assert len(list(data.TrainingText(corpus)())) == 100
    assert len(list(data.TrainingText(corpus, limit=1000)())) == 100
    assert text.fingerprint != data.TrainingText(corpus).fingerprint


TOKENIZER = {"name": "sentencepiece", "options": {"vocab_size": "60"}}


@pytest.fixture
def letters_table(monkeypatch):
    monkeypatch.setitem(data.DATASETS, "letters", Letters)


def test_load_data_packs_the_asked_splits_and_caches(letters_table, tmp_path, monkeypatch):
    section = {"name": "letters", "length": 16, "options": {"count": "300"}}
    first = data.load_data(section, TOKENIZER, tmp_path)
    assert set(first.rows) == {"train", "valid"} and first.corpus.count == 300
    assert first.tokenizer.vocab_size == 60  # numbers from the command line come as text
    monkeypatch.setattr(packing, "_write", lambda *_: pytest.fail("packed again"))
    monkeypatch.setattr(Letters, "read", lambda *_: pytest.fail("the corpus was read again"))
    monkeypatch.setattr(Letters, "fingerprint", lambda self, split: saved[split])
    saved = {s: first.rows[s].manifest["corpus_fingerprint"] for s in first.rows}
    second = data.load_data({**section, "cache_dir": str(tmp_path)}, TOKENIZER)
    assert second.rows == first.rows
    third = data.load_data(section, {}, tmp_path, tokenizer=first.tokenizer)
    assert third.rows == first.rows


@pytest.mark.parametrize(
    ("section", "tokenizer_section", "sentence"),
    [
        ({"name": "letters", "lenght": 9}, TOKENIZER, "'data.lenght'; did you mean data.length"),
        ({"name": "letters", "length": "x"}, TOKENIZER, "data.length must be an integer, not 'x'"),
        ({"name": "letters"}, {"nam": "characters"}, "did you mean tokenizer.name"),
        ({"name": "leters"}, TOKENIZER, "unknown data set 'leters'"),
        ({}, TOKENIZER, "no data set is named"),
        ({"name": "letters", "options": {"cnt": 1}}, TOKENIZER, "'letters' has no option 'cnt'"),
        ({"name": "letters"}, {"name": "words"}, "unknown tokenizer 'words'"),
        ({"name": "letters"}, {}, "no tokenizer is named"),
        ({"name": "letters"}, {"name": "characters", "options": {"x": 1}}, "has no option 'x'"),
    ],
)
def test_bad_sections_get_a_sentence(letters_table, tmp_path, section, tokenizer_section, sentence):
    with pytest.raises(errors.UserError, match=sentence):
        data.load_data(section, tokenizer_section, tmp_path)
