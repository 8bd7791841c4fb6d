"""flm quickstart: the shipped model writes, a small one is trained and distilled, what is next."""

import re

import pytest
from commands import call

import flm_jax
from flm_jax import shipped
from flm_jax.cli import quickstart

TINY = {
    "model.width": 16, "model.depth": 1, "model.heads": 2, "model.cond_dim": 8,
    "train.steps": 2, "train.batch_size": 8, "train.eval_rows": 8, "train.eval_every": 0,
    "train.sample_every": 0, "sampler.num_samples": 8, "sampler.batch_size": 8,
    "sampler.steps": (1,), "evals": (),
}  # fmt: skip


@pytest.mark.slow
def test_what_is_there_already_writes_sentences(capsys):
    assert not call("quickstart", "--notrain")
    shown = capsys.readouterr().out
    model = flm_jax.load(quickstart.STORIES)
    default = model.config.sampler.steps[-1]
    for steps in (1, default, 2 * default):
        assert re.search(rf"   {steps} network evaluations? \(\d+ ms a text\)\n     \w", shown)
    # A prompt is gone on from, and a gap is filled without a second space on either side.
    assert len(re.findall("     Once upon a time, there was a little dog named \\w+", shown)) == 2
    filled = re.findall(r"     (Lily found a.* in the garden\. She was very .*)", shown)
    assert len(filled) == 2 and not any("  " in line or "MASK" in line for line in filled)
    assert "flm demo --checkpoint=stories" in shown and "2. " not in shown


@pytest.mark.slow
def test_a_model_is_trained_and_distilled(tmp_path, capsys):
    workdir = tmp_path / "q"
    changes = TINY | {"data.cache_dir": str(tmp_path)}
    assert not quickstart.train(workdir, changes)
    shown = capsys.readouterr().out
    assert f"flm train --config=quickstart:distill --workdir={workdir}_fmlm" in shown
    kinds = [flm_jax.load(path).kind for path in (workdir, f"{workdir}_fmlm")]
    assert kinds == ["denoiser", "flow map"]
    quickstart.show_next(workdir)
    shown = capsys.readouterr().out
    assert f"{workdir / 'report.html'}" in shown and f"--checkpoint={workdir}" in shown


@pytest.mark.parametrize("name", shipped.names())
def test_every_shipped_model_loads_is_small_and_has_a_card(name):
    folder = shipped.find(name)
    assert folder is not None and (folder / "model.safetensors").stat().st_size < 8e6
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "FILL_IN" not in card
    for words in ("stories260K", "MIT", "TinyStories", "copied", "## Limits"):
        assert words in card, words
    model = flm_jax.load(name)
    assert model.config.data.name == "text_files" and model.step > 1000


def test_a_path_of_the_user_comes_before_a_shipped_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.find("stories") is not None and shipped.find("no_such") is None
    assert shipped.find("./stories") is None and shipped.find("runs/stories") is None
    (tmp_path / "stories").mkdir()
    assert shipped.find("stories") is None
    with pytest.raises(flm_jax.errors.UserError, match="holds no config.json"):
        flm_jax.load("stories")
    monkeypatch.chdir("/")
    with pytest.raises(flm_jax.errors.UserError, match="a model that is here already: stories"):
        flm_jax.load("no_such")
