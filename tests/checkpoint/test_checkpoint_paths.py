"""A save counts when what it holds was read back; folders of any name, or a sentence before."""

import logging
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.checkpoint import Checkpoints, arrays
from flm_jax.checkpoint.bucket import Bucket
from flm_jax.errors import UserError

ITEMS = {"params": {"w": jnp.arange(6.0).reshape(2, 3), "b": (jnp.ones(2), jnp.int32(3))}}


@pytest.mark.parametrize("name", ["run[1]", "lr=[1,2]", "[", "[!a]", "a*b?", "{a} #%20\n~"])
def test_a_folder_of_any_name_holds_checkpoints_that_can_be_read(tmp_path, name):
    folder = tmp_path / name / "checkpoints"
    (tmp_path / "run1" / "checkpoints").mkdir(parents=True)  # what the first name means as pattern
    for step in (1, 2):
        with Checkpoints(folder) as checkpoints:
            assert checkpoints.save(step, ITEMS, {}, wait=True)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps() == [1, 2] and not checkpoints.save(2, ITEMS, {}, wait=True)
        step, items, _ = checkpoints.restore(ITEMS)
    assert step == 2
    np.testing.assert_array_equal(items["params"]["w"], ITEMS["params"]["w"])


def test_a_backslash_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"a\\b.* has a backslash .*rename .*or give a link"):
        Checkpoints(tmp_path / "a\\b" / "checkpoints")
    (tmp_path / "a\\b").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a\\b")
    with Checkpoints(tmp_path / "link" / "checkpoints") as checkpoints:  # the remedy
        assert checkpoints.save(1, ITEMS, {}, wait=True) and checkpoints.restore(ITEMS)[0] == 1


@pytest.mark.parametrize("place", ["gs://bucket/run[1]", "s3://bucket/a*/run", "gs://bucket/why?"])
def test_a_bucket_whose_name_is_a_pattern_is_refused(place):
    """Its libraries would take it for one, and delete what matches."""
    with pytest.raises(UserError, match="://.*pattern.*choose a name without"):
        Bucket(place)


def lose_one_array(monkeypatch):
    """Arrays vanish on their way to the disk, without a word."""
    save = Checkpoints._open_manager

    def opened(self):
        manager = save(self)
        original = manager.save

        def lossy(step, args, **rest):
            args["params"].item.pop("w")
            return original(step, args=args, **rest)

        manager.save = lossy
        return manager

    monkeypatch.setattr(Checkpoints, "_open_manager", opened)


def test_a_save_that_does_not_hold_its_arrays_is_no_checkpoint(tmp_path, monkeypatch, caplog):
    items = lambda: {"params": dict(ITEMS["params"])}  # noqa: E731
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, items(), {}, wait=True)
    with monkeypatch.context() as patch, Checkpoints(tmp_path) as checkpoints:
        lose_one_array(patch)
        with pytest.raises(UserError, match=r"step 2 could not .* no array w\).*step 1 is"):
            checkpoints.save(2, items(), {}, wait=True)
        assert checkpoints.steps() == [1]
        checkpoints.save(3, items(), {})
        checkpoints.save(4, items(), {})
        assert "CHECKPOINT NOT SAVED: the checkpoint of step 3" in caplog.text
        with pytest.raises(UserError, match="step 4"):
            checkpoints.close()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(2, items(), {}, wait=True)
        assert checkpoints.restore(ITEMS)[0] == 2


def test_warnings_of_orbax_are_heard(tmp_path, caplog):
    arrays.import_orbax()
    told = logging.getLogger("absl")
    where = f"{pathlib.Path(arrays.import_orbax().__file__).parent}/x.py"
    for level in (logging.INFO, logging.WARNING, logging.ERROR):
        told.handle(told.makeRecord("absl", level, where, 1, f"at {level}", (), None))
    with Checkpoints(tmp_path) as checkpoints:  # a save as it should be has nothing to say
        checkpoints.save(1, ITEMS, {}, wait=True)
        checkpoints.save(2, ITEMS, {})
        checkpoints.restore(ITEMS)
    assert [record.getMessage() for record in caplog.records] == ["at 30"]  # errors are raised too
