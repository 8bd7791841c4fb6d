"""Every published recipe from raw files in their layout to a training step, and golden blocks."""

import gzip
import json
import pathlib

import numpy as np
import published_layouts as layouts
import pytest
from tokenizers import pre_tokenizers

from flm_jax import config as config_lib
from flm_jax import data, experiment
from flm_jax.checkpoint import Checkpoints
from flm_jax.data import prepare
from flm_jax.data.published import PUBLISHED
from flm_jax.errors import UserError
from flm_jax.tokenizers.bert import Bert
from flm_jax.tokenizers.gpt2 import Gpt2
from flm_jax.training import loop

WORDS = "the is it of a minister talks ? ! . , ##s ##o".split()
TINY = {
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "model.cond_dim": 8,
    "model.dtype": "float32",
    "model.remat": False,
    "train.batch_size": 8,
    "train.steps": 1,
    "train.log_every": 1,
    "train.eval_every": 0,
    "train.sample_every": 0,
    "train.save_every": 0,
    "train.eval_rows": 8,
    "train.eval_taus": (0.5,),
    "sampler.steps": (1,),
    "sampler.num_samples": 4,
    "sampler.batch_size": 8,
}


@pytest.fixture(autouse=True)
def private_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("FLM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-home"))
    for name in ("FLM_JAX_DATA", "FLM_JAX_TOKENIZERS", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)


def bert_folder(folder: pathlib.Path) -> str:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "bert").mkdir()
    (folder / "bert/vocab.txt").write_text("\n".join(words) + "\n")
    return str(folder / "bert")


def gpt2_folder(folder: pathlib.Path) -> str:
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]
    (folder / "gpt2").mkdir()
    (folder / "gpt2/vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "gpt2/merges.txt").write_text("#version: 0.2\n")
    return str(folder / "gpt2")


def lm1b(folder):
    sentences = layouts.SENTENCES * 8
    path = layouts.lm1b_archive(folder, train=sentences, test=sentences)
    return {"data.options.path": path, "tokenizer.options.folder": bert_folder(folder)}


def owt(folder):
    path = layouts.owt_subsets(folder / "hub", pages=24)
    tokenizer = gpt2_folder(folder)
    return {
        "data.options.path": path,
        "data.options.valid_documents": 8,
        "tokenizer.options.folder": tokenizer,
    }


def text8(folder):
    path = layouts.text8_zip(folder, layouts.text8(1000))
    return {
        "data.options.path": path,
        "data.options.characters": (600, 200, 200),
        "data.options.piece": 18,
    }


def wikitext(folder):
    path = layouts.wikitext_zip(folder, "wikitext-103-raw")
    return {"data.options.path": path, "tokenizer.options.folder": gpt2_folder(folder)}


def wikitext_small(folder):
    path = layouts.wikitext_zip(folder)
    return {"data.options.path": path, "tokenizer.options.vocab_size": 40}


def tinystories(folder):
    path = layouts.tinystories(folder, 30)
    return {"data.options.path": path, "tokenizer.options.vocab_size": 36}


def ptb(folder):
    path = layouts.ptb_archive(folder)
    return {"data.options.path": path, "tokenizer.options.vocab_size": 30}


RECIPES = {
    "lm1b.py": lm1b,
    "owt.py": owt,
    "text8.py": text8,
    "wikitext.py": wikitext,
    "wikitext.py:pretrain,small": wikitext_small,
    "tinystories.py": tinystories,
    "ptb.py": ptb,
}


def recipe(name, folder, **changes) -> config_lib.Config:
    options = RECIPES[name](folder)
    options["data.options.path"] = str(options["data.options.path"])
    config = config_lib.load(f"configs/{name}", {"data.length": 20, **TINY, **options, **changes})
    config_lib.validate(config, experiment.tables())
    return config


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n != "text8.py" else n for n in RECIPES],
)
def test_from_raw_files_to_a_training_step(name, tmp_path, capsys):
    config = recipe(name, tmp_path)
    sections = config_lib.to_dict(config)
    prepare.run(data.plan(sections["data"], sections["tokenizer"], splits=("train", "valid")), 0)
    assert "train: prepared" in capsys.readouterr().out
    assert loop.train(config, tmp_path / "run") == 0
    assert Checkpoints(tmp_path / "run/checkpoints").steps() == [1]
    found = data.load_data(sections["data"], sections["tokenizer"])
    rows_NL = found.rows["train"][:]
    assert rows_NL.shape[1] == 20 and len(rows_NL) >= 8
    tokenizer = found.tokenizer
    assert (rows_NL[:, 0] == tokenizer.bos_id).all()
    assert (rows_NL[:, -1] == tokenizer.eos_id).all()
    assert rows_NL.max() < tokenizer.vocab_size


def test_rows_of_text8_are_its_pieces(tmp_path):
    sections = config_lib.to_dict(recipe("text8.py", tmp_path))
    found = data.load_data(sections["data"], sections["tokenizer"])
    text = layouts.text8(1000)
    assert found.tokenizer.vocab_size == len(set(text)) + 4
    got = [found.tokenizer.decode(row) for row in found.rows["train"][:]]
    assert got == [text[i : i + 18] for i in range(0, 594, 18)]
    assert len(found.rows["valid"]) == 11


def test_two_words_of_a_stage_and_stages_that_are_not():
    small = config_lib.load("configs/tinystories.py:distill,small")
    assert (small.stage, small.teacher, small.model.width) == (
        "distill",
        "runs/tinystories_small",
        128,
    )
    for name in ("lm1b.py:distil", "text8.py:pretrain,tiny", "wikitext.py:distill,pretrain"):
        with pytest.raises(UserError, match="this config has no stage"):
            config_lib.load(f"configs/{name}")


@pytest.mark.parametrize(
    "name, changes, sentence",
    [
        ("lm1b.py", {"data.options.path": "nowhere.tar.gz"}, "no file or folder nowhere.tar.gz"),
        ("lm1b.py", {"data.options.path": ""}, "wants 1-billion-word.*download=True"),
        ("lm1b.py", {"tokenizer.options.folder": "nowhere"}, "vocab.txt. is not in nowhere"),
        ("owt.py", {"data.options.path": ""}, "wants the Parquet.*hf download Skylion007"),
        ("owt.py", {"data.options.valid_documents": 24}, "24 documents here, too few for 24"),
        ("owt.py", {"data.options.path": "configs"}, "configs does not hold the Parquet, Arrow"),
        ("text8.py", {"data.options.characters": (90, 5, 5)}, "none smaller than"),
        ("text8.py", {"data.length": 19}, "has 18 tokens, too many for a row of length 19"),
        ("text8.py", {"data.options.characters": (600, 200, 201)}, "has 1,000 characters, not"),
        ("wikitext.py", {"data.options.document": "page"}, "must be 'article' or 'line'"),
        ("wikitext.py", {"data.options.path": "configs"}, "configs does not hold wiki.train.raw"),
        ("wikitext.py", {"data.length": 5000}, "not enough for one row of length 5000"),
        ("tinystories.py", {"data.options.path": "configs"}, "does not hold TinyStories-train"),
        ("tinystories.py", {"data.options.paths": "a"}, "has no option 'paths'; did you mean"),
        ("tinystories.py", {"tokenizer.options.vocab_size": 2}, "vocab_size"),
        ("ptb.py", {"data.options.path": ""}, "the Linguistic Data Consortium"),
        ("ptb.py", {"data.options.download": True}, "has no option 'download'"),
        ("ptb.py", {"data.options.path": "setup.cfg"}, "setup.cfg does not hold ptb.train.txt"),
    ],
)
def test_wrong_inputs_of_each_recipe(name, changes, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        sections = config_lib.to_dict(recipe(name, tmp_path, **changes))
        data.load_data(sections["data"], sections["tokenizer"])


class Numbers:
    """A tokenizer of texts that are their own token ids."""

    name, pad_id, vocab_size = "numbers", None, 60_000

    def __init__(self, bos_id: int, eos_id: int):
        self.bos_id, self.eos_id, self.fingerprint = bos_id, eos_id, f"{bos_id} {eos_id}"

    def encode_batch(self, texts):
        return [[int(word) for word in text.split()] for text in texts]

    def save(self, folder):
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)


def write_numbers(name: str, folder: pathlib.Path, texts: list[str]) -> data.Corpus:
    """The documents as the training text of a corpus in one of its layouts."""
    if name == "lm1b":
        return PUBLISHED["lm1b"](str(layouts.lm1b_folder(folder, train=texts)))
    files = {f"{n:07d}.txt": text.encode() for n, text in enumerate([*texts, "0"])}
    (folder / "urlsf_subset00.tar").write_bytes(layouts.tar_bytes(files, "w"))
    return PUBLISHED["openwebtext"](str(folder), valid_documents=1)


@pytest.mark.parametrize("name", ["lm1b", "openwebtext"])
@pytest.mark.parametrize("case", ["several", "long"])
def test_blocks_are_those_that_the_official_code_made(name, case, tmp_path, shared):
    """Documents of the recorded tokens, written out and packed, are the recorded rows."""
    cases = json.loads((shared / "golden/text/group_texts.json").read_text())
    golden = next(c for c in cases if c["name"] == case)
    lists, bos, eos = golden["input_ids"], golden["bos"], golden["eos"]
    if all(tokens[-1] == eos for tokens in lists):
        lists = [tokens[:-1] for tokens in lists]
    else:  # recorded without ends of documents: one document
        lists = [[token for tokens in lists for token in tokens]]
    texts = [" ".join(map(str, tokens)) for tokens in lists]
    corpus = write_numbers(name, tmp_path, texts)
    rows = data.pack(corpus, Numbers(bos, eos), "train", golden["block_size"], tmp_path / "cache")
    assert rows[:].tolist() == golden["blocks"] and len(rows) > 10


def real_rows(shared, tokenizer, corpus, texts, length):
    """(rows of the recipe, rows written out: BOS, L-2 tokens of doc EOS doc EOS ..., EOS)."""
    stream = [t for text in texts for t in [*tokenizer.encode(text), tokenizer.eos_id]]
    inner = length - 2
    pieces = [stream[i : i + inner] for i in range(0, len(stream) - inner + 1, inner)]
    expected = [[tokenizer.bos_id, *piece, tokenizer.eos_id] for piece in pieces]
    return data.pack(corpus, tokenizer, "train", length)[:], np.array(expected)


def test_lm1b_in_real_word_pieces(tmp_path, shared):
    with gzip.open(shared / "data/lm1b/valid.txt.gz", "rt", encoding="utf-8") as file:
        sentences = [line.strip() for line in file][:300]
    corpus = PUBLISHED["lm1b"](str(layouts.lm1b_folder(tmp_path, train=sentences)))
    tokenizer = Bert.read(str(shared / "data/tokenizers/bert-base-uncased"))
    texts = [corpus.detokenize(sentence) for sentence in sentences]
    assert texts != sentences
    got, expected = real_rows(shared, tokenizer, corpus, texts, 128)
    np.testing.assert_array_equal(got, expected)
    assert tokenizer.vocab_size == 30522 and (got[:, [0, -1]] == 101).all()
    assert not (got == 102).any()  # [SEP] is never seen, as in the official data


def test_openwebtext_in_real_byte_pairs(tmp_path, shared):
    with gzip.open(shared / "data/openwebtext/valid.txt.gz", "rt", encoding="utf-8") as file:
        pages = [line.strip() for line in file][:20]
    files = {f"{n:07d}.txt": text.encode() for n, text in enumerate(pages)}
    (tmp_path / "urlsf_subset00.tar").write_bytes(layouts.tar_bytes(files, "w"))
    corpus = PUBLISHED["openwebtext"](str(tmp_path), valid_documents=3)
    tokenizer = Gpt2.read(str(shared / "data/tokenizers/gpt2"))
    got, expected = real_rows(shared, tokenizer, corpus, pages[:17], 1024)
    np.testing.assert_array_equal(got, expected)
    assert tokenizer.vocab_size == 50258 and (got[:, [0, -1]] == 50256).all()
    assert len(got) > 3
