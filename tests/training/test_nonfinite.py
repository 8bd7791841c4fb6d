"""A batch with numbers that are not finite: kept out of the state, written down, repeatable."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import finished  # noqa: F401, a fixture

from flm_jax.checkpoint import Checkpoints
from flm_jax.data import Batches, load_data
from flm_jax.errors import UserError
from flm_jax.host import runlog
from flm_jax.host.command import pasteable
from flm_jax.losses.flow_matching import FlowMatching
from flm_jax.training import incidents, loop, reproduce

BAD_ROW = 3  # of the batches that are spoiled


def with_train(config, **values):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **values))


@functools.cache
def evaluate():
    return FlowMatching.evaluate


def poison(config, monkeypatch, *steps: int) -> None:
    """Makes one row of the batches of these steps give NaN, wherever it comes."""
    sections = dataclasses.asdict(config.data), dataclasses.asdict(config.tokenizer)
    batches = Batches(load_data(*sections).rows["train"], config.train.batch_size, config.seed)
    bad = [next(batches)["tokens"][BAD_ROW] for _ in range(max(steps))]
    bad_NL = np.stack([bad[step - 1] for step in steps])
    batches.close()
    honest = evaluate()

    def poisoned(self, at, batch, draws):
        losses = honest(self, at, batch, draws)
        hit_B = (batch.tokens_BL[:, None] == bad_NL[None]).all(-1).any(-1)
        return losses._replace(loss_BL=losses.loss_BL * jnp.where(hit_B, jnp.nan, 1.0)[:, None])

    monkeypatch.setattr(FlowMatching, "evaluate", poisoned)


@pytest.mark.slow  # five programs are compiled
def test_stop_keeps_the_step_before_and_the_batch_and_is_repeatable(
    finished, tmp_path, monkeypatch  # noqa: F811
):  # fmt: skip
    config, reference = finished
    workdir = tmp_path / "run"
    poison(config, monkeypatch, 7)
    with pytest.raises(UserError) as error:
        loop.train(config, workdir)
    file = workdir / "nonfinite" / "step_00000007.npz"
    command = pasteable("reproduce", str(file))
    assert str(error.value) == (
        "loss is nan at step 7; step 6 is saved; try a lower learning rate than 0.003, a longer "
        f"warm-up, or train.nonfinite=skip; look at its batch with: {command}"
    )
    assert Checkpoints(workdir / "checkpoints").steps() == [4, 6]
    assert [row["step"] for row in runlog.read(workdir) if "loss" in row] == [2, 4, 6]
    with np.load(file) as facts:
        assert facts["tokens"].shape == (8, 12) and facts["mask"].all()
        assert (int(facts["step"]), int(facts["seed"]), str(facts["command"])) == (7, 1, command)

    result = reproduce.reproduce(file, workdir)
    assert (result["checkpoint"], result["steps_repeated"]) == (6, 0)
    assert result["reproduced"] and result["loss"] == "nan" and result["rows"] == [BAD_ROW]
    count, _, total = result["parameters"].partition(":")[0].partition(" of ")
    assert count == total
    # Without the step before it, the one before that and the steps between do.
    moved = workdir / "checkpoints" / "6"
    moved.rename(workdir / "damaged-6")
    again = reproduce.reproduce(file, workdir)
    assert (again["checkpoint"], again["steps_repeated"]) == (4, 2)
    assert again["reproduced"] and again["rows"] == [BAD_ROW]
    (workdir / "damaged-6").rename(moved)

    # Without the poison the same command goes on as if nothing had happened (but for rounding: the
    # program with the poison is another one).
    monkeypatch.setattr(FlowMatching, "evaluate", evaluate())
    monkeypatch.setattr(loop.summary, "finish", lambda *_: None)
    assert loop.train(config, workdir) == 0
    ends = [loop.Session(config, where) for where in (workdir, reference)]
    states = [jax.tree.leaves(session.restore()[1]) for session in ends]
    for mine, wanted in zip(*states, strict=True):
        np.testing.assert_allclose(mine, wanted, atol=1e-6)


def test_skip_goes_on_counts_and_ends_after_too_many_in_a_row(
    finished, tmp_path, monkeypatch, caplog  # noqa: F811
):  # fmt: skip
    config, _ = finished
    workdir = tmp_path / "run"
    config = with_train(config, nonfinite="skip", nonfinite_limit=3, eval_every=0, sample_every=0)
    poison(config, monkeypatch, 3, 6, 9, 10, 11)
    monkeypatch.setattr(loop.summary, "finish", lambda *_: None)
    with pytest.raises(UserError, match="loss is nan at step 11 and at the 2 steps before; step 8"):
        loop.train(config, workdir)
    assert "loss is nan at step 3: batch skipped; look at its batch with" in caplog.text
    names = sorted(path.name for path in (workdir / "nonfinite").iterdir())
    assert names == [f"step_{step:08d}.npz" for step in (3, 6, 9, 10, 11)]
    rows = runlog.read(workdir)
    assert [(row["step"], row.get("skipped_steps", 0)) for row in rows] == [
        (2, 0), (4, 1), (6, 2), (8, 2), (10, 4),
    ]  # fmt: skip
    assert all(np.isfinite(row["loss"]) for row in rows[:4]) and "loss" not in rows[4]
    _, meta = Checkpoints(workdir / "checkpoints").restore_meta()
    assert meta["skipped"] == 2
    session = loop.Session(config, workdir)
    _, state = session.restore()
    assert (int(state.skipped), int(state.in_a_row)) == (2, 0)
    assert json.loads((workdir / "run.json").read_text())["stopped"] == "failed"


def test_spikes_are_found_against_the_median_of_the_last_norms():
    spikes = incidents.Spikes(factor=10.0, window=30)
    norms = [1.0, 2.0, 3.0] * 10
    assert [spikes.median_if_spike(norm) for norm in norms] == [None] * 30
    assert spikes.median_if_spike(19.0) is None
    assert spikes.median_if_spike(21.0) == 2.0
    for _ in range(40):
        spikes.median_if_spike(40.0)
    assert spikes.median_if_spike(21.0 * 10) is None
    assert spikes.median_if_spike(401.0) == 40.0
    silent = incidents.Spikes(factor=0.0)
    assert {silent.median_if_spike(float(10**n)) for n in range(40)} == {None}
    early = incidents.Spikes(factor=2.0)
    assert {early.median_if_spike(float(10**n)) for n in range(20)} == {None}


def test_a_run_that_skips_on_and_on_does_not_fill_the_disk(tmp_path):
    tokens, mask = np.zeros((2, 3), np.int32), np.ones((2, 3), np.float32)
    for step in range(incidents.MOST_FILES):
        assert incidents.keep_batch(tmp_path, step, tokens, mask, {})
    assert incidents.keep_batch(tmp_path, 99, tokens, mask, {}) is None
    assert incidents.keep_batch(tmp_path, 3, tokens, mask, {})


def test_a_file_that_is_no_batch_is_one_sentence(tmp_path):
    (tmp_path / "step_1.npz").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match="step_1.npz cannot be read .*give a file of nonfinite/"):
        reproduce.reproduce(tmp_path / "step_1.npz", tmp_path)
    np.savez(tmp_path / "step_2.npz", step=2)
    with pytest.raises(UserError, match="step_2.npz has no config; give"):
        reproduce.reproduce(tmp_path / "step_2.npz", tmp_path)
