"""The inspection tool: what it prints for a config and for a folder, and its exit codes."""

import html.parser
import json
import os
import pathlib

import numpy as np
import pytest
from commands import flm
from recipes import make_tokenizer

from flm_jax import data, errors
from flm_jax.data import base, page, rows, shards, statistics

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = """
def get_config():
    return {
        "data": {"name": "text_files", "length": 8, "options": {"path": PATH, "document": "line"}},
        "tokenizer": {"name": "characters"},
    }
"""
DOCUMENTS = [f"document {i}" for i in range(300)]


def run(folder, *words):
    return flm("inspect", *words, env={**os.environ, "FLM_JAX_CACHE": str(folder / "cache")})


def inspect(folder, *words, documents=DOCUMENTS):
    (folder / "text.txt").write_text("".join(f"{document}\n" for document in documents))
    (folder / "c.py").write_text(CONFIG.replace("PATH", repr(str(folder / "text.txt"))))
    return run(folder, f"--config={folder / 'c.py'}", *words)


def test_a_config_then_its_folder(tmp_path):
    done = inspect(tmp_path, "--rows=2", f"--html={tmp_path / 'p.html'}")
    assert done.returncode == 0, done.stderr
    for words in ("data set   text_files", "train      2", "tokenizer  characters, 23 ids"):
        assert words in done.stdout
    rows_shown = ["row 0 of train: [BOS]docume[EOS]", "row 1 of train: [BOS]nt 0[EOS]d[EOS]"]
    assert [line for line in done.stdout.splitlines() if line.startswith("row ")] == rows_shown
    assert "Length of documents" in (tmp_path / "p.html").read_text()

    again = run(tmp_path, str(tmp_path / "cache"), "--rows=2")
    assert again.returncode == 0, again.stderr
    assert [line for line in again.stdout.splitlines() if line.startswith("row ")] == rows_shown
    entropy = [line for line in done.stdout.splitlines() if line.startswith("entropy")]
    assert entropy == [line for line in again.stdout.splitlines() if line.startswith("entropy")]
    valid = run(tmp_path, str(tmp_path / "cache" / "rows"), "--split=valid")
    assert "data set   text_files, valid" in valid.stdout and "row 2 of valid" in valid.stdout

    for words, sentence in (
        ([str(tmp_path)], "holds no prepared rows; give a folder that flm prepare made"),
        ([str(tmp_path / "no")], "is not a folder; give a folder"),
        ([str(tmp_path / "cache"), "--split=dev"], "no split 'dev' in"),
        ([str(tmp_path / "cache"), "more"], "unexpected argument 'more'"),
        ([str(tmp_path / "cache"), f"--config={tmp_path}/c.py"], "either the folder"),
        ([], "nothing to look at; give a folder"),
    ):
        done = run(tmp_path, *words)
        assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr


def test_mistakes_end_with_a_sentence_and_code_2(tmp_path):
    for flag, sentence in (
        ("--split=dev", "error: no split 'dev'; choose one of train, valid, test"),
        ("--config.data.length=9999999", "error: the 'train' split of 'text_files' has 2"),
    ):
        done = inspect(tmp_path, flag)
        assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr


def test_an_empty_test_split_is_no_reason_to_refuse(tmp_path):
    kept = [text for text in DOCUMENTS if base.split_of(text) != "test"]
    done = inspect(tmp_path, documents=kept)
    assert done.returncode == 0, done.stderr
    assert "rows       test: none, because 2" in done.stdout and "row 2 of train" in done.stdout
    done = inspect(tmp_path, "--split=test", documents=kept)
    assert done.returncode == 2 and "for the 'test' split; set options.test_path" in done.stderr


@pytest.fixture
def prepared(tmp_path):
    (tmp_path / "a.txt").write_text("aab\nab\n<b>&\n")
    options = {"path": str(tmp_path / "a.txt"), "valid_path": str(tmp_path / "a.txt")}
    section = {"name": "text_files", "length": 5, "options": options}
    return data.load_data(section, {"name": "characters"}, tmp_path / "cache")


def test_statistics_of_rows_written_out_by_hand(prepared):
    found, tokenizer = prepared.rows["train"], prepared.tokenizer
    ids = {piece: tokenizer.encode(piece)[0] for piece in "<>ab&"}
    a, b = ids["a"], ids["b"]
    expected = [
        [1, a, a, b, 2],
        [1, 2, a, b, 2],
        [1, 2, ids["<"], b, 2],
        [1, ids[">"], ids["&"], 2, 2],
    ]
    assert found[:].tolist() == expected
    seen = statistics.measure(found, tokenizer.vocab_size)
    assert seen.counts_V.tolist() == np.bincount(np.ravel(expected), minlength=9).tolist()
    one_pair = -(0.4 * np.log(0.4) + 3 * 0.2 * np.log(0.2))
    np.testing.assert_allclose(seen.block_entropies_N, [one_pair] * 4)
    shares = seen.counts_V[seen.counts_V > 0] / 20
    np.testing.assert_allclose(seen.unigram_entropy, -(shares * np.log(shares)).sum())
    assert seen.used == 7 and seen.most_common[0] == (2, 0.35)
    shown = [statistics.visible(row, tokenizer) for row in found[:]]
    assert shown == ["[BOS]aab[EOS]", "[BOS][EOS]ab[EOS]", "[BOS][EOS]<b[EOS]", "[BOS]>&[EOS][EOS]"]


def test_rows_looked_at_are_spread_evenly(prepared, monkeypatch):
    monkeypatch.setattr(statistics, "MOST_ROWS", 2)
    seen = statistics.measure(prepared.rows["train"], prepared.tokenizer.vocab_size)
    assert seen.looked_at == 2
    expected = np.bincount(prepared.rows["train"][[0, 2]].ravel(), minlength=9)
    np.testing.assert_array_equal(seen.counts_V, expected)
    with pytest.raises(errors.UserError, match="has the token 8, but its tokenizer has only 5 ids"):
        monkeypatch.undo()
        statistics.measure(prepared.rows["train"], 5)


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.rects, self.titles, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag == "rect":
            self.rects.append({key: float(value) for key, value in attrs})
        if tag not in ("meta", "path", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("rect", "path"):
            assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] == "title":
            self.titles.append(text)


def test_the_page_is_whole_escaped_and_its_bars_are_the_counts(prepared):
    found = prepared.rows["train"]
    seen = statistics.measure(found, prepared.tokenizer.vocab_size)
    text = page.page([(found, prepared.tokenizer, seen)], rows=4)
    tags = Tags()
    tags.feed(text)
    assert tags.open == [] and "&lt;b" in text and "<b" not in text.replace("<body", "")
    assert tags.titles[:4] == ["Prepared text", "from 2: 1", "from 3: 1", "from 4: 1"]
    assert len({rect["height"] for rect in tags.rects[:3]}) == 1 and tags.rects[0]["height"] > 100


def test_a_folder_with_another_tokenizer_is_refused_naming_both(prepared):
    other = make_tokenizer({"name": "characters"}, lambda: ["xyz"])
    found = prepared.rows["train"]
    other.save(found.path / rows.TOKENIZER_FOLDER)
    with pytest.raises(errors.UserError) as caught:
        statistics.tokenizer_of(found)
    for fingerprint in (other.fingerprint, prepared.tokenizer.fingerprint):
        assert fingerprint[:12] in str(caught.value)


def test_unfinished_folders_are_told(tmp_path):
    shards.Writer(tmp_path / "rows" / "x.part", 5, 8, np.uint16)
    (tmp_path / "rows" / "x.part" / "manifest.json").write_text(json.dumps({}))
    with pytest.raises(
        errors.UserError, match=r"only unfinished rows \(x.part\); .* let it finish"
    ):
        rows.prepared_below(tmp_path)
