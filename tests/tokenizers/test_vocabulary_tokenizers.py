"""GPT-2 BPE and BERT WordPiece: ids against the rules, specials, files, and the recordings."""

import errno
import gzip
import json
import pathlib
import pickle
import unicodedata
from unittest.mock import Mock

import pytest
from tokenizers import pre_tokenizers

from flm_jax.errors import UserError
from flm_jax.tokenizers.bert import Bert, BertRecipe
from flm_jax.tokenizers.gpt2 import Gpt2, Gpt2Recipe

MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w"), ("hell", "o")]
WORDS = ["the", "cat", "##s", "##ing", "sing", "un", "##able", "isn", "'", "t", ".", ",", "東", "!"]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tiny_gpt2(pad=True) -> Gpt2:
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(pair) for pair in MERGES]
    return Gpt2({token: i for i, token in enumerate([*tokens, "<|endoftext|>"])}, MERGES, pad)


def tiny_bert() -> Bert:
    return Bert(SPECIALS + WORDS)


TINY = {"gpt2": (tiny_gpt2, Gpt2Recipe), "bert": (tiny_bert, BertRecipe)}


def test_gpt2_ids_and_special_tokens():
    tokenizer = tiny_gpt2()
    assert tokenizer.vocab_size == 256 + 5 + 1 + 1
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (261, 261, 262)
    assert [tokenizer.piece(i) for i in tokenizer.encode("hello world")] == [
        *("hello", " w", "o", "r", "l", "d")
    ]
    assert tokenizer.encode("") == []
    assert tokenizer.encode("<|endoftext|>[PAD]") == [261, 262]
    assert tokenizer.piece(262) == "[PAD]"
    without = tiny_gpt2(pad=False)
    assert without.vocab_size == 262 and without.pad_id is None
    assert len(without.encode("[PAD]")) == 5
    assert without.fingerprint != tokenizer.fingerprint


@pytest.mark.parametrize("text", ["", " a  b\n\t", "日本語 😀", "\x00\x7f", "naïve — …"])
def test_gpt2_returns_every_text(text):
    assert tiny_gpt2().decode(tiny_gpt2().encode(text)) == text


def test_gpt2_decoding_with_and_without_specials():
    tokenizer = tiny_gpt2()
    ids = [261, *tokenizer.encode("hello , hello n't ' "), 262, 261]
    assert tokenizer.decode(ids) == "hello , hello n't ' "
    written = "<|endoftext|>hello, hellon't'[PAD]<|endoftext|>"
    assert tokenizer.decode_official(ids) == written
    untidied = "<|endoftext|>hello , hello n't ' [PAD]<|endoftext|>"
    assert tokenizer.decode_official(ids, tidy=False) == untidied


def test_bert_ids_and_special_tokens():
    tokenizer = tiny_bert()
    assert tokenizer.vocab_size == 19
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (2, 2, 0)
    pieces = [tokenizer.piece(i) for i in tokenizer.encode("The Cäts SINGing unable東, dog!")]
    assert pieces == ["the", "cat", "##s", "sing", "##ing", "un", "##able", "東", ",", "[UNK]", "!"]
    assert tokenizer.encode("[CLS] [MASK]") == [2, 4]
    assert tokenizer.encode("t" * 101) == [1]


def test_bert_decoding_with_and_without_specials():
    tokenizer = tiny_bert()
    ids = [2, *tokenizer.encode("the cats isn't sing , dog ."), 0, 2, 3]
    assert tokenizer.decode(ids) == "the cats isn't sing, [UNK]."
    assert tokenizer.decode_official(ids) == "[CLS] the cats isn't sing, [UNK]. [PAD] [CLS] [SEP]"
    untidied = "[CLS] the cats isn ' t sing , [UNK] . [PAD] [CLS] [SEP]"
    assert tokenizer.decode_official(ids, tidy=False) == untidied


@pytest.mark.parametrize("kind", TINY)
def test_batches_pickles_and_saved_folders(kind, tmp_path):
    make, recipe = TINY[kind]
    tokenizer = make()
    texts = ["hello the cats", "", "lone \ud800 half", "sing!"]
    expected = [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch(texts) == expected
    tokenizer.save(tmp_path)
    meta = json.loads((tmp_path / "flm_tokenizer.json").read_text())
    for copy in (
        pickle.loads(pickle.dumps(tokenizer)),
        recipe.from_files(tmp_path, meta),
        recipe(str(tmp_path)).build(),
    ):
        assert copy.encode_batch(texts) == expected
        assert copy.fingerprint == tokenizer.fingerprint
        assert vars(copy).keys() >= {"vocab_size", "bos_id", "eos_id", "pad_id"}
    assert meta["name"] == tokenizer.name and meta["fingerprint"] == tokenizer.fingerprint


def write_gpt2(folder, names):
    tokenizer = tiny_gpt2()
    tokenizer.save(folder / "saved")
    vocab = (folder / "saved/vocab.json").read_text()
    merges = (folder / "saved/merges.txt").read_text()
    target = folder / "files"
    target.mkdir()
    if len(names) == 1:
        model = {"vocab": json.loads(vocab), "merges": merges.splitlines()[1:]}
        (target / names[0]).write_text(json.dumps({"model": model}))
    else:
        (target / names[0]).write_text(vocab)
        (target / names[1]).write_text(merges)
    return target


@pytest.mark.parametrize(
    "names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"), ("tokenizer.json",)]
)
def test_gpt2_file_names(tmp_path, names):
    folder = write_gpt2(tmp_path, names)
    assert Gpt2.read(str(folder)).fingerprint == tiny_gpt2().fingerprint


def test_where_files_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-home"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("FLM_JAX_TOKENIZERS", raising=False)
    vocabulary = "\n".join(SPECIALS + WORDS) + "\n"
    with pytest.raises(UserError, match="bert-base-uncased vocabulary .vocab.txt. is not in"):
        Bert.read()
    snapshot = tmp_path / "hub-home/hub/models--google-bert--bert-base-uncased/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "vocab.txt").write_text(vocabulary, encoding="utf-8")
    assert Bert.read().vocab_size == 19
    own = tmp_path / "own/bert-base-uncased"
    own.mkdir(parents=True)
    (own / "vocab.txt").write_text(vocabulary + "dog\r\n", encoding="utf-8")
    monkeypatch.setenv("FLM_JAX_TOKENIZERS", str(tmp_path / "own"))
    assert Bert.read().piece(19) == "dog"
    with pytest.raises(UserError, match="is not in .*nowhere; download it"):
        Gpt2.read(str(tmp_path / "nowhere"))
    denied = Mock(side_effect=PermissionError(errno.EACCES, "Permission denied"))
    monkeypatch.setattr(pathlib.Path, "read_bytes", denied)
    with pytest.raises(UserError, match=r"the vocabulary file .*vocab\.txt: Permission denied"):
        Bert.read()


@pytest.mark.parametrize(
    "vocab, merges, sentence",
    [
        ('{"a": 0}', "", "no token <|endoftext|>"),
        ('{"a": 0, "<|endoftext|>": 5}', "", "from 0 without gaps"),
        ('{"a": 0, "<|endoftext|>": 0}', "", "from 0 without gaps"),
        ('{"a": 0, "<|endoftext|>": 1}', "a b", r"merges a \+ b"),
        ('{"a": 0, "<|endoftext|>": 1}', "a a a", "not GPT-2 tokenizer files"),
        ('["a"]', "", "not GPT-2 tokenizer files"),
        ("{", "", "not GPT-2 tokenizer files"),
    ],
)
def test_damaged_gpt2_files(tmp_path, vocab, merges, sentence):
    (tmp_path / "vocab.json").write_text(vocab)
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(UserError, match=sentence.replace("|", r"\|")):
        Gpt2.read(str(tmp_path))


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"[PAD]\n[UNK]\n[CLS]\n[MASK]\n", r"has no token \[SEP\]"),
        ("\n".join([*SPECIALS, "a", "a"]).encode(), "has a token twice"),
        (b"\xff\xfe", "not UTF-8 text"),
    ],
)
def test_damaged_bert_files(tmp_path, content, sentence):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        Bert.read(str(tmp_path))


def test_recorded_encodings(shared):
    folder = shared / "data/tokenizers"
    gpt2 = Gpt2.read(str(folder / "gpt2"))
    bert = Bert.read(str(folder / "bert-base-uncased"))
    assert (gpt2.vocab_size, gpt2.bos_id, gpt2.eos_id, gpt2.pad_id) == (50258, 50256, 50256, 50257)
    assert (bert.vocab_size, bert.bos_id, bert.eos_id, bert.pad_id) == (30522, 101, 101, 0)
    cases = json.loads((folder / "reference_encodings.json").read_text())["cases"]
    assert len(cases) == 35
    for case in cases:
        assert gpt2.encode(case["text"]) == case["gpt2_ids"], case["text"]
        assert gpt2.decode(case["gpt2_ids"]) == case["text"]
        assert bert.encode(case["text"]) == case["bert_ids"][1:-1], case["text"]
        assert [bert.piece(i) for i in case["bert_ids"]] == case["bert_tokens"]


def slow_words(text: str) -> list[str]:
    """The words of the original (slow) tokenizer: clean, lower, strip accents, split marks."""
    words, spaced = [], ""
    for c in unicodedata.normalize("NFC", text):
        if c in " \t\n\r" or unicodedata.category(c) == "Zs":
            spaced += " "
        elif ord(c) in (0, 0xFFFD) or unicodedata.category(c)[0] == "C":
            continue
        else:
            spaced += f" {c} " if 0x4E00 <= ord(c) <= 0x9FFF else c
    for word in spaced.split():
        bare = unicodedata.normalize("NFD", word.lower())
        current = ""
        for c in (c for c in bare if unicodedata.category(c) != "Mn"):
            ascii_mark = c.isascii() and not c.isalnum()
            if ascii_mark or unicodedata.category(c)[0] == "P":
                words += [current, c] if current else [c]
                current = ""
            else:
                current += c
        words += [current] if current else []
    return words


def slow_ids(tokenizer: Bert, ids: dict[str, int], text: str) -> list[int]:
    """Greedy longest match from the left, [UNK] for a word that has no cover."""
    found = []
    for word in slow_words(text):
        start, pieces = 0, []
        while start < len(word):
            sizes = range(len(word), start, -1)
            marks = "##" if start else ""
            end = next((e for e in sizes if marks + word[start:e] in ids), None)
            if end is None:
                pieces = [ids["[UNK]"]]
                break
            pieces.append(ids[marks + word[start:end]])
            start = end
        found += pieces
    return found


def test_bert_equals_the_slow_tokenizer_on_real_text(shared):
    tokenizer = Bert.read(str(shared / "data/tokenizers/bert-base-uncased"))
    ids = {tokenizer.piece(i): i for i in range(tokenizer.vocab_size)}
    for corpus in ("lm1b/valid.txt.gz", "wikipedia-sample/valid.txt.gz"):
        with gzip.open(shared / "data" / corpus, "rt", encoding="utf-8") as file:
            lines = [line for _, line in zip(range(400), file, strict=False)]
        for line, fast in zip(lines, tokenizer.encode_batch(lines), strict=True):
            assert fast == slow_ids(tokenizer, ids, line), line
