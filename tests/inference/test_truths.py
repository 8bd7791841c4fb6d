"""A known truth: loaded from its kinds of files, drawn by a command, and used by an evaluation."""

import json
import pathlib
import re
import sys

import numpy as np
import pytest
from commands import call
from runs import finished as finished  # a fixture

from flm_jax import data
from flm_jax.data.rows import open_rows
from flm_jax.errors import UserError
from flm_jax.evals import comparison
from flm_jax.evals.artefact import Artefact
from flm_jax.inference import evaluation
from flm_jax.inference.truths import load_truth
from flm_jax.lab.truth import rows as truth_rows

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "interop"), str(TESTS / "evals")]
from test_generative_perplexity import write_scorer  # noqa: E402
from test_llama_file import SIZES, vocabulary, write  # noqa: E402

LENGTH = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama file with its vocabulary, and rows that were drawn from it by the command."""
    folder = tmp_path_factory.mktemp("truth")
    write(folder / "tiny.bin", SIZES)
    vocabulary(folder / f"tok{SIZES[5]}.bin", [" ", *"abcdefgh", " a", " b"])
    words = f"--truth={folder}/tiny.bin", f"--data_dir={folder}/rows", f"--length={LENGTH}"
    assert call("prepare", *words, "--rows=300", "--valid_rows=60") == 0
    return folder


def loaded(folder) -> data.Data:
    section = {"name": "prepared", "length": LENGTH, "options": {"path": str(folder / "rows")}}
    return data.load_data(section, {})


def test_the_command_draws_rows_once_and_says_so(folder, capsys):
    rows = loaded(folder).rows
    assert {split: len(found) for split, found in rows.items()} == {"train": 300, "valid": 60}
    assert (rows["train"][:][:, 0] == 1).all()
    words = f"--truth={folder}/tiny.bin", f"--data_dir={folder}/rows", f"--length={LENGTH}"
    assert call("prepare", *words, "--rows=300", "--valid_rows=60", "--splits=train") == 0
    said = capsys.readouterr().out
    assert said.startswith("train: already there; 300 rows of 8 tokens of 270, from tiny\n")


def test_the_rows_know_their_truth(folder, caplog):
    found = loaded(folder)
    truth = evaluation.known_truth(None, found)
    assert truth is not None and truth.name == "tiny" and not caplog.text
    # the entropy of what was drawn is the mean of its scores, and other text is less likely
    drawn = found.rows["train"][:]
    other = np.random.default_rng(0).integers(3, 270, drawn.shape)
    other[:, 0] = 1
    assert truth.score(drawn).mean() + 1 < truth.score(other).mean()


def test_a_truth_that_is_gone_or_another_one_is_a_notice(folder, tmp_path, caplog):
    found = loaded(folder)
    for path, words in (
        (tmp_path / "gone.bin", "the truth of the rows cannot be loaded .*give --truth"),
        (tmp_path / "other.bin", "other.bin is not what the rows were drawn from any more"),
    ):
        if path.stem == "other":
            write(path, SIZES, seed=1)
            vocabulary(tmp_path / f"tok{SIZES[5]}.bin", [" ", *"abcdefgh", " a", " b"])
        found.rows["train"].manifest["truth_path"] = str(path)
        caplog.clear()
        assert evaluation.known_truth(None, found) is None
        assert re.search(words, caplog.text)


def test_the_table_has_likelihoods_fresh_text_and_a_verdict(folder):
    found, truth = loaded(folder), load_truth(folder / "tiny.bin")
    real = truth.sample(5000 + np.arange(50), LENGTH, 1)
    artefacts = {
        1: Artefact({}, np.repeat(real[:1], 50, axis=0), [""] * 50, 1.0),
        4: Artefact({}, real, [""] * 50, 1.0),
    }
    table = comparison.table(found.tokenizer, artefacts, found, None, truth)
    rows = {row["name"]: row["values"] for row in table["rows"]}
    assert rows["4 steps"]["judge_nats"] == pytest.approx(
        rows["fresh truth"]["judge_nats"], abs=0.4
    )
    assert rows["1 step"]["distinct_4"] < 0.1 < rows["fresh truth"]["distinct_4"]
    assert rows["1 step"]["held_out_nats"] > rows["4 steps"]["held_out_nats"]
    first, second = table["verdict"]
    assert first.startswith("1 step: ") and first.endswith("its samples are alike")
    assert second.startswith("4 steps: ") and second.endswith("as diverse as real text")
    without = comparison.table(found.tokenizer, artefacts, found, None)
    titles = {column["key"]: column["help"] for column in without["columns"]}
    assert "a 3-gram model" in titles["judge_nats"] and len(without["verdict"]) == 2


def test_a_gpt2_folder_is_a_truth(tmp_path):
    truth = load_truth(write_scorer(tmp_path / "gpt2"))
    rows = truth.sample(np.arange(3), 5, 0)
    assert rows.shape == (3, 5) and (rows[:, 0] == truth.tokenizer.eos_id).all()
    assert (truth.name, truth.longest) == ("gpt2", 257)


def test_what_is_not_autoregressive_is_refused(finished, tmp_path):
    with pytest.raises(
        UserError, match="'flow_matching', whose likelihood is not exact; give a run"
    ):
        load_truth(finished[1])
    with pytest.raises(UserError, match="there is no file or folder"):
        load_truth(tmp_path / "nowhere")
    write(tmp_path / "tiny.bin", SIZES)
    vocabulary(tmp_path / f"tok{SIZES[5]}.bin", [" "])
    with pytest.raises(UserError, match="has 270 tokens, but the vocabulary beside it 260"):
        load_truth(tmp_path / "tiny.bin")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--truth=nowhere.bin"], "there is no file or folder"),
        (["--truth=x.bin", "--config=configs/quickstart.py"], "omit one"),
        (["--truth=x.bin", "--rows=0"], "--rows=0 must be at least 1"),
        (["--truth=x.bin", "--length=2"], "--length=2 must be at least 3"),
    ],
)
def test_wrong_words_get_one_sentence(words, sentence, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert call("prepare", *words) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_edited_manifest_is_still_found_out(folder):
    """The truth is part of what is signed."""
    rows = loaded(folder).rows["valid"]
    path = rows.path / "manifest.json"
    kept = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(kept), "truth_path": "elsewhere"}))
        with pytest.raises(UserError, match="was changed after it was written"):
            open_rows(rows.path)
    finally:
        path.write_text(kept)
    assert truth_rows.PACKING == rows.manifest["packing"] == "drawn"
