"""Copies of checkpoints elsewhere: whole, verified, resumed, pruned, fetched."""

import dataclasses
import json
import pathlib
import shutil
import time
import uuid

import fsspec
import jax.numpy as jnp
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from runs import finished  # noqa: F401, a fixture

from flm_jax import config as config_lib
from flm_jax.checkpoint import MANIFEST, Checkpoints, Mirror, mirror
from flm_jax.errors import UserError
from flm_jax.training import loop

CONFIG = "the config"


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path):
    """An empty place on a file system that is not the local one, and on the local one."""
    if request.param == "file":
        yield f"file://{tmp_path}/elsewhere/mirror"
        return
    place = f"memory://{uuid.uuid4().hex}"
    yield place
    shutil.rmtree(tmp_path, ignore_errors=True)
    fs = fsspec.filesystem("memory")
    if fs.exists(place):
        fs.rm(place, recursive=True)


def saved(folder: pathlib.Path, *steps: int, metrics: dict | None = None, **keep) -> Checkpoints:
    """Checkpoints of these steps, whose numbers are the step's."""
    checkpoints = Checkpoints(folder / "checkpoints", **keep)
    for step in steps:
        tree = {"w": jnp.full((32, 32), step, jnp.float32)}
        checkpoints.save(step, {"params": tree}, {"at": step}, (metrics or {}).get(step), wait=True)
    return checkpoints


def opened(url: str, checkpoints: Checkpoints, **options) -> Mirror:
    made = Mirror(url, checkpoints, checkpoints.folder.parent, **options)
    made.claim(CONFIG)
    return made


def numbers(checkpoints: Checkpoints) -> tuple[int, float]:
    step, items, meta = checkpoints.restore({"params": {"w": jnp.zeros((32, 32))}})
    assert meta == {"at": step}
    return step, float(np.unique(np.asarray(items["params"]["w"])).item())


def files(url: str) -> dict[str, bytes]:
    fs, root = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    return {path[path.index(root) + len(root) + 1 :]: fs.cat_file(path) for path in fs.find(root)}


def test_a_new_machine_goes_on_from_the_mirror(url, tmp_path):
    here = saved(tmp_path / "old", 10, 20)
    opened(url, here).sync()
    folder = tmp_path / "old" / "checkpoints"
    local = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*")
             if p.is_file()}  # fmt: skip
    there = files(url)
    assert json.loads(there.pop("MIRROR.json"))["config"] == CONFIG
    assert there == local

    new = Checkpoints(tmp_path / "new" / "checkpoints")
    asked = []
    (tmp_path / "new").mkdir()
    made = Mirror(url, new, tmp_path / "new")
    made.claim("another text", asked.append)
    assert asked == [CONFIG]
    assert made.fetch() == 20
    assert numbers(new) == (20, 20.0)
    assert [p.name for p in new.folder.iterdir()] == ["20"]
    made.sync()  # and the run is now this workdir's: nothing is deleted that the rule keeps
    assert made.steps() == [10, 20]


def test_a_damaged_copy_is_not_fetched_and_is_mended_by_the_next_sync(url, tmp_path, caplog):
    here = saved(tmp_path / "old", 10, 20)
    opened(url, here).sync()
    fs, root = fsspec.core.url_to_fs(url)
    largest = max((p for p in fs.find(f"{root}/20/params")), key=lambda p: fs.info(p)["size"])
    good = fs.cat_file(largest)
    fs.pipe_file(largest, bytes([good[0] ^ 1]) + good[1:])
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    shutil.rmtree(tmp_path / "new" / "checkpoints")
    new = Checkpoints(tmp_path / "new" / "checkpoints")
    assert opened(url, new).fetch() == 10
    assert numbers(new) == (10, 10.0)
    assert "mirrored checkpoint 20 is damaged, skipped: " in caplog.text
    fs.rm_file(f"{root}/20/{MANIFEST}")  # as if the copy had not come to its end
    opened(url, here).sync()
    assert fs.cat_file(largest) == good


def test_the_mirror_keeps_latest_and_best_and_what_is_not_ours(url, tmp_path):
    keep = {"keep_latest": 1, "keep_best": 1}
    metrics = {10: 1.0, 20: 3.0, 30: 2.0}
    here = saved(tmp_path, 10, metrics=metrics, **keep)
    made = opened(url, here, **keep)
    made.sync()
    fs, root = fsspec.core.url_to_fs(url)
    fs.makedirs(f"{root}/notes")
    fs.pipe_file(f"{root}/notes/20", b"mine")
    fs.pipe_file(f"{root}/README", b"mine")
    for step in (20, 30):
        saved(tmp_path, step, metrics=metrics, **keep)
        made.sync()
    assert here.steps() == made.steps() == [10, 30]
    assert {"notes/20", "README"} < files(url).keys()
    # A workdir that holds only the newest step does not delete the best one in the mirror.
    shutil.rmtree(here.folder / "10")
    saved(tmp_path, 40, metrics={40: 9.0}, **keep)
    made.sync()
    assert made.steps() == [10, 40]


def test_places_of_others_are_refused(url, tmp_path):
    opened(url, saved(tmp_path / "a", 10)).sync()
    with pytest.raises(UserError, match="belongs to a run in another workdir"):
        opened(url, saved(tmp_path / "b", 10))
    new = Mirror(url, Checkpoints(tmp_path / "c" / "checkpoints"), tmp_path / "c")

    def check(config):
        raise UserError(f"it has {config}")

    with pytest.raises(UserError, match="it has the config"):
        new.claim("", check)
    assert not (tmp_path / "c").exists()
    fs, root = fsspec.core.url_to_fs(url)
    fs.rm_file(f"{root}/MIRROR.json")
    with pytest.raises(UserError, match="holds 10 and other numbered folders .* an empty place"):
        new.claim("")
    with pytest.raises(UserError, match="train.mirror=nosuch://x cannot be used: .*nosuch"):
        Mirror("nosuch://x", Checkpoints(tmp_path), tmp_path)


class Flaky(LocalFileSystem):
    """Fails after some bytes have gone to it, in the middle of a file."""

    protocol = ("flaky",)
    cachable = False
    room = 0
    written: list[str] = []

    def open(self, path, mode="rb", **options):
        file = super().open(path, mode, **options)
        if "w" not in mode:
            return file
        Flaky.written.append(path)
        write = file.write

        class Wrapped:
            def write(self, data):
                part = data[: max(0, Flaky.room)]
                Flaky.room -= len(data)
                write(part)
                if len(part) < len(data):
                    raise OSError(5, "the line went dead")

            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

        return Wrapped()


@pytest.fixture
def flaky(tmp_path, monkeypatch):
    there = tmp_path / "there"
    monkeypatch.setattr(mirror, "_reach", lambda url: (Flaky(), str(there)))
    Flaky.room, Flaky.written = 10**9, []
    return there


def test_a_copy_that_broke_off_goes_on_where_it_was(flaky, tmp_path):
    here = saved(tmp_path / "run", 10)
    made = opened("flaky://", here)
    Flaky.room = 1200
    with pytest.raises(OSError, match="the line went dead"):
        made.sync()
    assert made.steps() == [] and not list(here.folder.glob(".mirror-*"))
    before = list(Flaky.written)
    Flaky.room, Flaky.written = 10**9, []
    made.sync()
    assert made.steps() == [10]
    again = set(before) & set(Flaky.written)
    assert len(again) == 1 and len(before) > 3  # the file in which it broke off
    (tmp_path / "new").mkdir()
    shutil.copy(tmp_path / "run" / "MIRROR.json", tmp_path / "new")
    new = Checkpoints(tmp_path / "new" / "checkpoints")
    assert opened("flaky://", new).fetch() == 10
    assert numbers(new) == (10, 10.0)


def test_failures_are_loud_tried_again_and_an_error_only_at_the_end(flaky, tmp_path, caplog):
    here = Checkpoints(tmp_path / "run" / "checkpoints")
    here.folder.mkdir(parents=True)
    made = opened("flaky://", here, poll_s=0.01)
    Flaky.room = 0
    with pytest.raises(UserError, match="could not be copied to flaky:// .*; the same command"):
        with made:
            saved(tmp_path / "run", 10)
            wait_for(lambda: caplog.text.count("NOT MIRRORED: the checkpoints could not") == 1)
            assert "went dead); those in" in caplog.text
            saved(tmp_path / "run", 20)
            wait_for(lambda: caplog.text.count("NOT MIRRORED: the checkpoints could not") == 2)
    assert numbers(here) == (20, 20.0)
    Flaky.room = 10**9
    with made:
        wait_for(lambda: made.steps() == [10, 20])


def wait_for(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_damaged_local_step_is_not_passed_on(url, tmp_path, caplog):
    here = saved(tmp_path, 10, 20)
    found = [path for path in (here.folder / "20" / "params").rglob("*") if path.is_file()]
    path = max(found, key=lambda path: path.stat().st_size)
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    made = opened(url, here)
    made.sync()
    assert made.steps() == [10]
    assert "checkpoint 20 is damaged, not mirrored" in caplog.text


def test_training_moves_to_a_new_machine(finished, tmp_path, capsys, monkeypatch):  # noqa: F811
    """Copied at the end of a session; fetched into an empty workdir and into a damaged one."""
    config, original = finished
    monkeypatch.setattr(loop.summary, "finish", lambda *_: None)
    place = dataclasses.replace(config.train, mirror=f"file://{tmp_path}/mirror")
    config = dataclasses.replace(config, train=place)
    shutil.copytree(original, tmp_path / "run")
    assert loop.train(config, tmp_path / "run") == 0
    assert sorted(p.name for p in (tmp_path / "mirror").iterdir()) == [
        "12",
        "4",
        "8",
        "MIRROR.json",
    ]
    other = dataclasses.replace(config, seed=7)
    with pytest.raises(UserError, match="mirror belongs to a run with another config.*\nseed: 1"):
        loop.train(other, tmp_path / "new")
    assert loop.train(config, tmp_path / "new") == 0
    assert f"checkpoint 12 came from {place.mirror}" in capsys.readouterr().out
    assert Checkpoints(tmp_path / "new" / "checkpoints").steps() == [12]
    for path in (tmp_path / "new" / "checkpoints" / "12" / "params").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    assert loop.train(config, tmp_path / "new") == 0
    out = capsys.readouterr().out
    assert f"checkpoint 12 came from {place.mirror}" in out and "at step 12" in out
    assert config_lib.from_json((tmp_path / "new" / "config.json").read_text()) == config
