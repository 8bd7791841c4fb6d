"""The command that measures batches: of a folder, and of a config beside its training step."""

import os
import pathlib
import re
import sys
import types

import pytest
from commands import flm
from recipes import make_tokenizer

from flm_jax import data, errors
from flm_jax.data import speed

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = {
    "data.length": 8,
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "model.cond_dim": 8,
    "train.batch_size": 8,
}


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"document {i}\n" for i in range(300)))
    return path


def run(tmp_path, *words):
    environment = {**os.environ, "FLM_JAX_CACHE": str(tmp_path / "cache")}
    return flm("benchmark", "data", *words, env=environment)


def test_whole_batches_are_counted_for_the_time_asked_for(text, tmp_path, monkeypatch):
    corpus = data.load_corpus({"name": "text_files", "options": {"path": str(text)}})
    tokenizer = make_tokenizer({"name": "characters"}, lambda: corpus.source("train"))
    rows = data.pack(corpus, tokenizer, "train", 8, tmp_path / "cache")
    ticks = iter(range(100))
    clock = types.SimpleNamespace(
        perf_counter=lambda: float(next(ticks)), process_time=lambda: 0.25 * next(ticks)
    )
    monkeypatch.setattr(speed, "time", clock)
    # The clock: 0 (processor 1), then one tick a batch (2, 3, 4), 5 at the end (processor 6).
    assert speed.measure(rows, 16, 4.0, 0) == (48 / 5, 48 / (0.25 * 5))


def test_neither_or_both_is_refused(tmp_path):
    for words in ([], [str(tmp_path), "--config=configs/text8.py"]):
        done = run(tmp_path, *words)
        assert done.returncode == 2 and "give either one folder" in done.stderr


def test_a_training_step_that_cannot_be_measured(monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    settings = {"space": "auto", "model": {"width": 8}, "data": {"length": 8}}
    with pytest.raises(errors.UserError, match="step could not be measured, see above; correct"):
        speed.training_rate(settings, 27, [])


@pytest.mark.slow
def test_batches_and_training_step_in_one_run(text, tmp_path):
    changes = [f"--config.{name}={value}" for name, value in TINY.items()]
    config = ["--config", "configs/text_files.py:characters", f"--config.data.options.path={text}"]
    done = run(tmp_path, *config, *changes, "--seconds=0.2")
    assert done.returncode == 0, done.stderr
    rate, taken, times = (
        float(re.search(pattern, done.stdout)[1].replace(",", ""))
        for pattern in (r": ([\d,]+) rows/s", r"takes ([\d,]+) rows/s", r"come ([\d,]+) times")
    )
    assert "(batches of 8, 0 loaders)" in done.stdout
    assert rate > taken > 0 and abs(times - rate / taken) <= 1 + 0.01 * times
