"""A known truth: loaded from its kinds of files, drawn by a command, and used by an evaluation."""

import dataclasses
import json
import pathlib
import re
import shutil
import sys
from unittest.mock import Mock

import jax
import numpy as np
import pytest
import tiny
import untrained
from commands import call

from flm_jax import data
from flm_jax.data.rows import open_rows
from flm_jax.errors import UserError
from flm_jax.evals import comparison
from flm_jax.evals.comparison import Comparison, Written
from flm_jax.inference.evaluation import evaluate
from flm_jax.inference.truths import known_truth, load_truth
from flm_jax.lab.truth import rows as truth_rows
from flm_jax.options import Evaluation
from flm_jax.tokenizers.characters import Characters
from flm_jax.training import loop
from flm_jax.training import results as results_lib

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "interop"), str(TESTS / "evals")]
from test_generative_perplexity import (  # noqa: E402
    log_probs64,
    raw_weights,
    write_scorer,
)
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
    truth = known_truth(None, found)
    assert truth is not None and truth.name == "tiny" and not caplog.text
    # the entropy of what was drawn is the mean of its scores, and other text is less likely
    drawn = found.rows["train"][:]
    other = np.random.default_rng(0).integers(3, 270, drawn.shape)
    other[:, 0] = 1
    assert truth.score(drawn).mean() + 1 < truth.score(other).mean()


def test_a_truth_that_is_gone_or_another_one_is_a_notice(folder, tmp_path, caplog):
    found = loaded(folder)
    for path, words in (
        (tmp_path / "gone.bin", "the truth of the rows cannot be loaded .*flm evaluate --truth="),
        (tmp_path / "other.bin", "other.bin is not what the rows were drawn from any more"),
    ):
        if path.stem == "other":
            write(path, SIZES, seed=1)
            vocabulary(tmp_path / f"tok{SIZES[5]}.bin", [" ", *"abcdefgh", " a", " b"])
        found.rows["train"].manifest["truth_path"] = str(path)
        caplog.clear()
        assert known_truth(None, found) is None
        assert re.search(words, caplog.text)


def test_the_table_has_likelihoods_fresh_text_and_a_verdict(folder):
    found, truth = loaded(folder), load_truth(folder / "tiny.bin")
    real = truth.sample(5000 + np.arange(50), LENGTH, 1)
    written = [
        Written("1 step", 1, np.repeat(real[:1], 50, axis=0), 1.0),
        Written("4 steps", 4, real, 1.0),
    ]
    others = comparison.standard(found.tokenizer, found)

    def table_of(truth):
        return Comparison(found.tokenizer, LENGTH, found, truth, others).table(written)

    table = table_of(truth)
    rows = {row["name"]: row["values"] for row in table["rows"]}
    assert rows["4 steps"]["judge_nats"] == pytest.approx(
        rows["fresh truth"]["judge_nats"], abs=0.4
    )
    assert rows["1 step"]["distinct_4"] < 0.1 < rows["fresh truth"]["distinct_4"]
    assert rows["1 step"]["held_out_nats"] > rows["4 steps"]["held_out_nats"]
    first, second, best = table["verdict"]
    assert best == f"best at the diversity of real text: 4 steps, {_nats(rows):.2f} nats a token"
    assert first.startswith("1 step: ") and first.endswith("its samples are alike")
    assert second.startswith("4 steps: ") and "as diverse as real text" in second
    without = table_of(None)
    titles = {column["key"]: column["help"] for column in without["columns"]}
    assert "a 3-gram model" in titles["judge_nats"] and len(without["verdict"]) == 3
    assert (table["judge"], without["judge"]) == ("tiny", "a 3-gram model")


def _nats(rows):
    return rows["4 steps"]["judge_nats"]


def config_of(folder, tmp_path):
    return tiny.run_config(
        tmp_path,
        data={"name": "prepared", "length": LENGTH, "options": {"path": str(folder / "rows")}},
        tokenizer={"name": ""},
        train__steps=2,
        train__sample_every=0,
        sampler__num_samples=48,
        sampler__steps=(1,),
    )


def test_a_training_measures_with_the_truth_and_the_evaluators_of_its_config(folder, tmp_path):
    """Without the training: what it compares its samples with."""
    session = Mock(config=config_of(folder, tmp_path), data=loaded(folder))
    compared = results_lib._comparison(session)
    rows = session.data.rows["valid"][:50]
    table = compared.table([Written("FLM, 1 step", 1, rows, 1.0)])
    keys = [column["key"] for column in table["columns"]]
    assert keys[:2] == ["judge_nats", "distinct_4"] and "words_known" in keys
    assert "copied" not in keys and "self_bleu" not in keys  # nobody asked for them
    assert table["judge"] == "tiny" and table["rows"][-1]["name"] == "fresh truth"
    assert table["verdict"][0].startswith("FLM, 1 step: ")
    session.config = dataclasses.replace(session.config, evals=())
    assert results_lib._comparison(session) is None


@pytest.mark.slow  # a training
def test_a_training_on_such_rows_ends_in_the_verdict(folder, tmp_path, capsys):
    assert loop.train(config_of(folder, tmp_path), tmp_path / "run") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    names = [row["name"] for row in results["rows"]]
    assert names[0] == "FLM, 1 step" and names[-2:] == ["held-out data", "fresh truth"]
    assert results["judge"] == "tiny"
    assert [column["key"] for column in results["columns"]][:2] == ["judge_nats", "distinct_4"]
    (said,) = results["verdict"]
    fresh = results["rows"][-1]["values"]["judge_nats"]
    assert said.startswith("FLM, 1 step: ") and f"nats a token (real text {fresh:.2f})" in said
    assert said in capsys.readouterr().out
    page = (tmp_path / "run" / "report.html").read_text()
    assert said in page and "Likelihood and diversity" in page
    # what `flm evaluate` measures of the same samples is the same
    again = evaluate(Evaluation(checkpoint=str(tmp_path / "run"), num_samples=48, steps=(1,)))
    no_range = "no range of real text: two halves of 48 rows need 96, and there are 48"
    assert again["verdict"] == [said.removeprefix("FLM, "), no_range]


def test_a_gpt2_folder_is_a_truth_with_exact_likelihoods(tmp_path):
    truth = load_truth(write_scorer(tmp_path / "gpt2"))
    rows = truth.sample(np.arange(3), 6, 0)
    assert rows.shape == (3, 6) and (rows[:, 0] == truth.tokenizer.eos_id).all()
    assert (truth.name, truth.longest) == ("gpt2", 257)
    np.testing.assert_array_equal(truth.sample(np.array([2, 0]), 6, 0), rows[[2, 0]])
    assert (truth.sample(np.arange(3), 6, 1) != rows).any()
    # against GPT-2 in float64, head by head
    for row, nats in zip(rows, truth.score(rows), strict=True):
        exact = -log_probs64(raw_weights(), row)[np.arange(5), row[1:]]
        np.testing.assert_allclose(nats, exact, atol=3e-4)


@pytest.fixture(scope="module")
def autoregressive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("autoregressive")
    return load_truth(untrained.of_loss(folder, "autoregressive", "autoregressive"))


def test_an_autoregressive_run_is_a_truth_with_exact_likelihoods(autoregressive):
    truth = autoregressive
    assert (truth.name, truth.longest) == ("autoregressive", 12)
    size = truth.tokenizer.vocab_size
    # the probabilities of all texts of two tokens are those of a distribution
    pairs = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).reshape(-1, 2)
    every = np.concatenate([np.full((len(pairs), 1), truth.tokenizer.bos_id), pairs], axis=1)
    assert np.exp(-truth.score(every).sum(axis=1)).sum() == pytest.approx(1, abs=1e-4)
    # each token is scored by what the network says of its prefix alone
    rows = truth.sample(np.arange(4), 7, 0)
    nats = truth.score(rows)
    state, times = truth.net.table[rows[:, :5]], np.zeros(4, np.float32)
    says = jax.jit(lambda h: truth.net(h, times).posterior.dense())(state)[:, -1]
    exact = -np.log(np.asarray(says)[np.arange(4), rows[:, 5]])
    np.testing.assert_allclose(nats[:, 4], exact, atol=1e-4)
    # row i is drawn from its index and the seed
    np.testing.assert_array_equal(truth.sample(np.array([3, 1]), 7, 0), rows[[3, 1]])
    with pytest.raises(UserError, match="autoregressive knows rows of at most 12 tokens, not 13"):
        truth.sample(np.arange(1), 13, 0)


def test_sampled_tokens_occur_as_often_as_the_truth_says(autoregressive):
    truth = autoregressive
    drawn = truth.sample(np.arange(4096), 3, 0)[:, 1]
    size = truth.tokenizer.vocab_size
    first = np.stack([np.full(size, truth.tokenizer.bos_id), np.arange(size)], axis=1)
    expected = np.exp(-truth.score(first)[:, 0])
    shares = np.bincount(drawn, minlength=size) / len(drawn)
    assert np.abs(shares - expected).max() < 4 * np.sqrt(0.25 / len(drawn))


def test_a_gpt2_with_more_outputs_than_tokens_draws_known_tokens_only(tmp_path):
    weights = raw_weights()
    table = weights["wte.weight"]
    weights["wte.weight"] = np.concatenate([table, table[:7] + 1])
    truth = load_truth(write_scorer(tmp_path / "gpt2", weights, vocab_size=len(table) + 7))
    rows = truth.sample(np.arange(200), 5, 0)
    assert rows.max() < truth.tokenizer.vocab_size == len(table)
    first = np.array([[truth.tokenizer.eos_id, token] for token in range(len(table))])
    assert np.exp(-truth.score(first)).sum() == pytest.approx(1, abs=1e-4)


def test_what_is_not_autoregressive_is_refused(tmp_path):
    with pytest.raises(
        UserError, match="'flow_matching', whose likelihood is not exact; give a run"
    ):
        load_truth(untrained.of_loss(tmp_path, "flow_matching", "euler"))
    with pytest.raises(UserError, match="there is no file or folder"):
        load_truth(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no config.json and no model.safetensors"):
        load_truth(tmp_path / "empty")
    write(tmp_path / "tiny.bin", SIZES)
    vocabulary(tmp_path / f"tok{SIZES[5]}.bin", [" "])
    with pytest.raises(UserError, match="has 270 tokens, but the vocabulary beside it 260"):
        load_truth(tmp_path / "tiny.bin")


def test_another_vocabulary_than_that_of_the_weights_is_refused(tmp_path):
    folder = write_scorer(tmp_path / "gpt2")
    vocab = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(vocab | {"more": len(vocab)}))
    with pytest.raises(UserError, match="does not belong to its model|take all files from"):
        load_truth(folder)
    run = untrained.of_loss(tmp_path, "autoregressive", "autoregressive")
    shutil.rmtree(run / "tokenizer")
    Characters("ab").save(run / "tokenizer")
    with pytest.raises(UserError) as caught:
        load_truth(run)
    assert "\n" not in str(caught.value)


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
