"""Reading the checkpoints of a training that deletes old ones meanwhile."""

import shutil
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.checkpoint import Checkpoints, arrays, checkpoints, manifest
from flm_jax.errors import UserError


def items(step: int) -> dict:
    return {name: {"w": jnp.full((64, 64), float(step))} for name in ("params", "ema")}


@pytest.fixture
def run(tmp_path):
    """Steps 1, 2 and 3, kept elsewhere; 1 and 2 are there."""
    with Checkpoints(tmp_path / "kept", keep_latest=3) as all_three:
        for step in (1, 2, 3):
            all_three.save(step, items(step), {"n": step}, wait=True)
    for step in ("1", "2"):
        shutil.copytree(tmp_path / "kept" / step, tmp_path / "run" / step)
    return tmp_path / "run"


def on_first_call(monkeypatch, owner, name, then):
    """Calls ``then`` before the first call of a function."""
    original, calls = getattr(owner, name), []

    def first(*arguments):
        calls.append(name)
        if len(calls) == 1:
            then()
        return original(*arguments)

    monkeypatch.setattr(owner, name, first)


MOMENTS = {
    "before it is verified": (manifest, "verify"),
    "before its items are listed": (Checkpoints, "item_names"),
    "before its description is read": (arrays, "stored_arrays"),
    "before its arrays are read": (arrays, "read_item"),
}
DELETIONS = {
    "whole": lambda step: shutil.rmtree(step),
    "its list of hashes first": lambda step: ((step / "MANIFEST.json").unlink(), empty(step)),
    "an item first": lambda step: shutil.rmtree(step / "ema"),
    "its files, folders to come": lambda step: empty(step),
}


def empty(step):
    for path in step.rglob("*"):
        if path.is_file():
            path.unlink()


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("deletion", DELETIONS)
def test_a_step_that_is_deleted_gives_way_to_the_next(run, monkeypatch, caplog, moment, deletion):
    def go_on():
        shutil.copytree(run.parent / "kept" / "3", run / "3")
        shutil.rmtree(run / "1")
        DELETIONS[deletion](run / "2")

    on_first_call(monkeypatch, *MOMENTS[moment], go_on)
    step, found, meta = Checkpoints(run).restore({"ema": items(0)["ema"]})
    assert (step, meta) == (3, {"n": 3})
    np.testing.assert_array_equal(found["ema"]["w"], items(3)["ema"]["w"])
    assert "damaged" not in caplog.text


def test_the_step_that_was_asked_for_is_deleted(run, monkeypatch):
    on_first_call(monkeypatch, arrays, "read_item", lambda: shutil.rmtree(run / "1"))
    with pytest.raises(UserError, match="has no checkpoint of step 1; it has 2"):
        Checkpoints(run).restore({"ema": items(0)["ema"]}, 1)


def test_all_are_deleted(run, monkeypatch):
    on_first_call(monkeypatch, Checkpoints, "item_names", lambda: shutil.rmtree(run))
    with pytest.raises(checkpoints.NoGoodStep, match="there is no checkpoint in"):
        Checkpoints(run).restore({"ema": items(0)["ema"]})


def test_loads_while_a_training_saves(tmp_path, caplog):
    """What is read is whole, of one step, and never older than the newest one before."""
    over = threading.Event()

    def train():
        with Checkpoints(tmp_path, keep_latest=1) as saved:
            for step in range(2, 100):
                saved.save(step, items(step), {"n": step})
                if over.is_set():
                    break

    with Checkpoints(tmp_path) as first:
        first.save(1, items(1), {"n": 1}, wait=True)
    training = threading.Thread(target=train)
    training.start()
    reader, newest = Checkpoints(tmp_path), 1
    try:
        while newest < 8 and training.is_alive():
            step, found, meta = reader.restore(items(0))
            assert step >= newest and meta == {"n": step}
            for tree in found.values():
                np.testing.assert_array_equal(tree["w"], step)
            newest = step
    finally:
        over.set()
        training.join()
    assert newest >= 8 and "damaged" not in caplog.text
