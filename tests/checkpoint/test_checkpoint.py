"""Checkpoints: bit-equal, on any mesh, alone, and never wrong numbers after damage."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tests.soak import faults

from flm_jax.checkpoint import MANIFEST, Checkpoints, manifest
from flm_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]

# orbax reads an item's files at the same time; after damage to one, the others complain in vain.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def make_params(seed=0):
    key_a, key_b = jax.random.split(jax.random.key(seed))
    # Large enough for a data file of its own: orbax keeps smaller arrays in its (checked) index.
    return {"block": {"w": jax.random.normal(key_a, (64, 64))}, "b": jax.random.normal(key_b, (8,))}


def optimizer():
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def data_file(folder: pathlib.Path) -> pathlib.Path:
    """The file with the numbers of an item, the one whose damage orbax does not notice."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def flip_byte(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture
def two_steps(tmp_path):
    """A folder with good checkpoints of steps 10 and 20."""
    with Checkpoints(tmp_path) as checkpoints:
        for step in (10, 20):
            params = make_params(step)
            checkpoints.save(step, {"params": params, "ema": params}, {"position": step})
    return tmp_path


def test_everything_comes_back_bit_equal(tmp_path):
    params = make_params()
    state = {"params": params, "opt_state": optimizer().init(params), "ema": make_params(1)}
    meta = {"position": 7, "config": {"seed": 1, "names": ["a", "b"]}}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        assert checkpoints.save(3, state, meta)
        checkpoints.wait()
        step, items, stored_meta = checkpoints.restore(abstract(state))
    assert (step, stored_meta) == (3, meta)
    assert_same(items, state)


def test_one_item_is_read_alone(two_steps):
    checkpoints = Checkpoints(two_steps)
    flip_byte(data_file(two_steps / "20" / "params"))
    step, items, _ = checkpoints.restore({"ema": abstract(make_params())})
    assert step == 20 and list(items) == ["ema"]
    assert checkpoints.restore_meta() == (20, {"position": 20})


def test_arrays_may_be_donated_at_once(tmp_path):
    params = make_params()
    expected = jax.tree.map(np.array, params)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": params}, {})
        jax.jit(lambda tree: jax.tree.map(lambda x: x * 0, tree), donate_argnums=0)(params)
        checkpoints.wait()
        assert_same(checkpoints.restore({"params": abstract(expected)})[1]["params"], expected)


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 4), (4, 2)])
def test_restores_onto_another_mesh(tmp_path, shape):
    def place(tree, shape):
        devices = jax.devices()[: shape[0] * shape[1]]
        axes = (AxisType.Auto,) * 2
        mesh = jax.make_mesh(shape, ("data", "fsdp"), devices=devices, axis_types=axes)
        specs = {"block": {"w": PartitionSpec("data", "fsdp")}, "b": PartitionSpec("fsdp")}
        return jax.tree.map(
            lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), tree, specs
        )

    params = make_params()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": place(params, (2, 4))}, {}, wait=True)
        target = place(jax.tree.map(jnp.zeros_like, params), shape)
        restored = checkpoints.restore({"params": target})[1]["params"]
    assert_same(restored, params)
    assert restored["block"]["w"].sharding == target["block"]["w"].sharding


@pytest.mark.parametrize(
    ("latest", "best", "kept"),
    [(2, 1, [2, 5, 6]), (1, 2, [2, 3, 6]), (1, 0, [6]), (3, 1, [2, 4, 5, 6])],
)
def test_latest_and_best_are_kept(tmp_path, latest, best, kept):
    metrics = [5.0, 1.0, 2.0, 3.0, float("nan"), None]
    with Checkpoints(tmp_path, latest, best) as checkpoints:
        for step, metric in enumerate(metrics, start=1):
            checkpoints.save(step, {"params": make_params()}, {}, metric=metric)
    assert Checkpoints(tmp_path).steps() == kept


def test_best_is_remembered_by_another_process(tmp_path):
    for step, metric in enumerate([3.0, 1.0, 2.0, 4.0], start=1):
        with Checkpoints(tmp_path, 1, 1) as checkpoints:
            checkpoints.save(step, {"params": make_params()}, {}, metric=metric)
    assert Checkpoints(tmp_path).steps() == [2, 4]


def test_a_step_is_saved_once(two_steps):
    with Checkpoints(two_steps) as checkpoints:
        assert not checkpoints.save(20, {"params": make_params()}, {"position": -1})
        assert checkpoints.restore_meta()[1] == {"position": 20}


def flip(folder):
    flip_byte(data_file(folder / "params"))


def truncate(folder):
    os.truncate(data_file(folder / "params"), 10)


def delete(folder):
    data_file(folder / "params").unlink()


def spoil_manifest(folder):
    (folder / MANIFEST).write_text('{"version": 1, "files": {')


def flip_meta(folder):
    flip_byte(folder / "meta" / "metadata")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip, "has changed since it was written"),
        (truncate, "has 10 bytes, should have"),
        (delete, "is missing"),
        (spoil_manifest, "MANIFEST.json cannot be read"),
        (flip_meta, "meta/metadata has changed"),
    ],
)
def test_damage_falls_back_to_the_older_step(two_steps, caplog, damage, reason):
    damage(two_steps / "20")
    checkpoints = Checkpoints(two_steps)
    step, items, meta = checkpoints.restore({"params": abstract(make_params())})
    assert (step, meta) == (10, {"position": 10})
    assert_same(items["params"], make_params(10))
    assert "checkpoint 20 is damaged" in caplog.text and reason in caplog.text
    with pytest.raises(UserError, match="step 20: .*restore a backup"):
        checkpoints.restore({"params": abstract(make_params())}, step=20)


def test_orbax_alone_restores_wrong_numbers(two_steps):
    """Why the manifest exists. When this fails, orbax has learnt to check its data."""
    flip(two_steps / "20")
    (two_steps / "20" / MANIFEST).unlink()
    step, items, _ = Checkpoints(two_steps).restore({"params": abstract(make_params())})
    assert step == 20
    assert not np.array_equal(items["params"]["block"]["w"], make_params(20)["block"]["w"])


def test_no_good_step_left(two_steps):
    for step in ("10", "20"):
        flip(two_steps / step)
    with pytest.raises(UserError, match="no checkpoint in .*step 20: .*step 10: "):
        Checkpoints(two_steps).restore({"params": abstract(make_params())})


def test_a_damaged_step_is_set_aside_and_saved_again(two_steps):
    flip(two_steps / "20")
    with Checkpoints(two_steps) as checkpoints:
        checkpoints.restore({"params": abstract(make_params())})
        assert checkpoints.save(20, {"params": make_params(3)}, {"position": 21}, wait=True)
        step, items, _ = checkpoints.restore({"params": abstract(make_params())})
    assert step == 20
    assert_same(items["params"], make_params(3))
    assert (two_steps / "damaged-20").is_dir()


def test_damaged_steps_do_not_pile_up(two_steps):
    """Found by the soak: sixteen of them filled its disk, and nothing could be saved any more."""
    with Checkpoints(two_steps) as checkpoints:
        for step in (20, 21, 22, 23):
            flip(two_steps / str(checkpoints.latest_step()))
            checkpoints.restore({"params": abstract(make_params())})
            checkpoints.save(step + 1, {"params": make_params()}, {}, wait=True)
    left = sorted(path.name for path in two_steps.glob("damaged-*"))
    assert left == ["damaged-22", "damaged-23"]
    assert Checkpoints(two_steps).steps() == [10, 24]


def test_a_save_that_fails_is_loud_and_the_next_one_is_tried(two_steps, monkeypatch, caplog):
    def full_disk(folder):
        raise OSError(28, "No space left on device")

    with Checkpoints(two_steps) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(manifest, "write", full_disk)
            checkpoints.save(30, {"params": make_params()}, {})
            checkpoints.save(40, {"params": make_params()}, {})
            assert "CHECKPOINT NOT SAVED: the checkpoint of step 30 " in caplog.text
            with pytest.raises(UserError, match="step 40 could not .*step 20 is intact"):
                checkpoints.wait()
        assert checkpoints.save(50, {"params": make_params()}, {}, wait=True)
    assert Checkpoints(two_steps).steps() == [20, 50]


def test_a_foreign_step_is_read_with_a_warning(two_steps, caplog):
    (two_steps / "20" / MANIFEST).unlink()
    restored = Checkpoints(two_steps).restore({"params": abstract(make_params())})
    assert restored[0] == 20 and "its bytes are not verified" in caplog.text
    truncate(two_steps / "20")
    assert Checkpoints(two_steps).restore({"params": abstract(make_params())})[0] == 10


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda p: p | {"b": jnp.zeros(6)}, r"b is \(8,\) there but \(6,\) here"),
        (lambda p: p | {"c": jnp.zeros(6)}, r"no array c \(6,\)"),
        (lambda p: {"b": p["b"]}, r"its array block.w \(64, 64\) is unknown here"),
        (lambda p: p | {"b": jnp.zeros(8, "bfloat16")}, "b is float32 there but bfloat16 here"),
    ],
)
def test_another_model_is_refused(two_steps, change, sentence):
    with pytest.raises(UserError, match=sentence):
        Checkpoints(two_steps).restore({"params": abstract(change(make_params()))})


def test_clear_sentences_for_wrong_requests(two_steps, tmp_path):
    with pytest.raises(UserError, match="there is no checkpoint in .*nothing"):
        Checkpoints(tmp_path / "nothing").restore({})
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(UserError, match="no checkpoint of step 15; it has 10, 20"):
        Checkpoints(two_steps).restore({}, step=15)
    with pytest.raises(UserError, match="no item 'opt_state'; it holds ema, params"):
        Checkpoints(two_steps).restore({"opt_state": {}})


def test_a_failed_save_leaves_the_older_step(two_steps, monkeypatch):
    def full_disk(folder):
        raise OSError(28, "No space left on device")

    # keep_latest=1: the failed save must not have deleted the only good step either
    with Checkpoints(two_steps, keep_latest=1, keep_best=0) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(manifest, "write", full_disk)
            checkpoints.save(30, {"params": make_params()}, {})
            with pytest.raises(UserError, match="step 30 could not .*No space.*step 20 is intact"):
                checkpoints.wait()
        assert Checkpoints(two_steps).restore_meta()[0] == 20
        assert checkpoints.save(30, {"params": make_params()}, {}, wait=True)
        assert checkpoints.steps() == [30]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with Checkpoints(tmp_path / "file" / "run") as checkpoints:
        with pytest.raises(UserError, match="step 1 could not be written to .*no older one"):
            checkpoints.save(1, {"params": make_params()}, {}, wait=True)


ON_A_FULL_DISK = """
    import pathlib, sys
    import jax.numpy as jnp
    from flm_jax.checkpoint import Checkpoints
    from flm_jax.errors import UserError
    from tests.soak import faults

    disk = pathlib.Path(sys.argv[1])
    tree = {"w": jnp.arange(150_000.0)}  # 0.6 MB of the 3 MB there are, hardly compressed
    with Checkpoints(disk, keep_latest=2) as checkpoints:
        checkpoints.save(1, {"params": tree}, {}, wait=True)
        faults.fill(disk, leave=100_000)
        checkpoints.save(2, {"params": tree}, {})
        try:
            checkpoints.wait()
        except UserError as error:
            print(error)
        print(checkpoints.restore({"params": tree})[0], checkpoints.steps())
        faults.empty(disk)
        checkpoints.save(3, {"params": tree}, {}, wait=True)
        print(checkpoints.restore({"params": tree})[0], checkpoints.steps())
"""


@pytest.mark.timeout(120)
def test_a_disk_that_is_really_full(tmp_path):
    if refusal := faults.quota_refusal():
        pytest.skip(f"no small disk can be mounted here ({refusal})")
    mount = 'mount -t tmpfs -o size=3m none "$0" && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", mount, str(tmp_path), sys.executable, "-c"]
    command += [textwrap.dedent(ON_A_FULL_DISK), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sentence, full, freed = done.stdout.splitlines()
    assert "the checkpoint of step 2 could not be written" in sentence
    assert "No space left" in sentence and "step 1 is intact" in sentence
    assert (full, freed) == ("1 [1]", "3 [1, 3]")


KILLED_IN_A_SAVE = """
    import sys, time
    import jax.numpy as jnp
    from flm_jax.checkpoint import Checkpoints, bucket, manifest

    def hang(*_):
        print("saving", flush=True)
        time.sleep(60)

    checkpoints = Checkpoints(sys.argv[1])
    checkpoints.save(1, {"params": {"w": jnp.arange(1000.0)}}, {"position": 1}, wait=True)
    FUNCTION = hang
    checkpoints.save(2, {"params": {"w": jnp.zeros(1000)}}, {"position": 2}, wait=True)
"""


def kill_in_a_save(place: str, function: str) -> None:
    """Saves step 1 there; kill -9 when the save of step 2 calls that function."""
    script = textwrap.dedent(KILLED_IN_A_SAVE).replace("FUNCTION", function)
    command = [sys.executable, "-c", script, place]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "saving\n"
        process.send_signal(signal.SIGKILL)


def assert_step_1_is_whole(checkpoints: Checkpoints) -> None:
    """... and the newest that counts after `kill_in_a_save`."""
    assert checkpoints.steps() == [1]
    step, items, _ = checkpoints.restore({"params": {"w": jnp.zeros(1000)}})
    assert step == 1
    np.testing.assert_array_equal(items["params"]["w"], np.arange(1000.0))


@pytest.mark.timeout(60)
def test_kill_9_in_the_middle_of_a_save(tmp_path):
    kill_in_a_save(str(tmp_path), "manifest.write")
    assert (tmp_path / "2.orbax-checkpoint-tmp").is_dir()
    with Checkpoints(tmp_path) as checkpoints:
        assert_step_1_is_whole(checkpoints)
        assert (tmp_path / "2.orbax-checkpoint-tmp").is_dir(), "reading must not clean"
        checkpoints.save(3, {"params": {"w": jnp.ones(1000)}}, {}, wait=True)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["1", "3"]


def test_the_manifest_lists_every_file_of_the_items(two_steps):
    folder = two_steps / "20"
    listed = set(json.loads((folder / MANIFEST).read_text())["files"])
    there = {p.relative_to(folder).as_posix() for p in folder.glob("*/**/*") if p.is_file()}
    late = {name for name in there - listed if not name.endswith("commit_success.txt")}
    assert not late and any(name.startswith("params/ocdbt.process_0/d/") for name in listed)


def test_a_name_that_is_not_utf8_is_refused_before_anything_is_trained(tmp_path):
    """What Python makes of a name under LC_ALL=C, or of one from an old disk."""
    with pytest.raises(UserError, match="cannot be kept in .*not as UTF-8; set PYTHONUTF8=1"):
        Checkpoints(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    Checkpoints(tmp_path / "жили")
