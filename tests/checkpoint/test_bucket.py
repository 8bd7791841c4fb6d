"""Checkpoints in a bucket, against stand-ins of Google Cloud Storage and of S3 on the loopback."""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import pytest
from fake_store import KINDS, new_place
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from processes import free_port
from test_checkpoint import (
    abstract,
    assert_same,
    assert_step_1_is_whole,
    kill_in_a_save,
    make_params,
)

from flm_jax.checkpoint import MANIFEST, Checkpoints, manifest, s3_arrays, stores
from flm_jax.checkpoint.bucket import Bucket
from flm_jax.errors import UserError

LARGEST = 12_000  # bytes of the file with the numbers of `make_params`, about


# The long tests take one of the two stores in `make test`.
LONG = pytest.mark.parametrize(
    "server", ["gs", pytest.param("s3", marks=pytest.mark.slow)], indirect=True
)


@pytest.fixture
def s3(servers):
    server = servers("s3")
    yield server
    server.refuse, server.md5_etags = lambda method, bucket, name: 0, True


def names(server, url: str, step: int | str = "") -> list[str]:
    """Paths of the objects below a folder, from there."""
    start = full(url, f"{step}/" if step else "")
    return sorted(n.removeprefix(start) for n in server.buckets["bucket"] if n.startswith(start))


def full(url: str, name: str) -> str:
    return f"{url.partition('://bucket/')[2]}/{name}"


def data_object(server, url: str, folder: str) -> str:
    """The object with the numbers of an item."""
    found = [full(url, f"{folder}/{n}") for n in names(server, url, folder)]
    return max(found, key=lambda name: len(server.buckets["bucket"][name].data))


def save(url: str, *steps: int, metrics: dict | None = None, **keep) -> None:
    with Checkpoints(url, **keep) as checkpoints:
        for step in steps:
            items = {"params": make_params(step), "ema": make_params(step)}
            checkpoints.save(step, items, {"position": step}, (metrics or {}).get(step), wait=True)


_examples: dict[str, dict[str, bytes]] = {}


@pytest.fixture
def example(server) -> dict[str, bytes]:
    """What good checkpoints of steps 10 and 20 are made of, saved once."""
    url = f"{server.scheme}://bucket/example"
    if server.url not in _examples:
        save(url, 10, 20)
        _examples[server.url] = {
            name: server.buckets["bucket"][full(url, name)].data for name in names(server, url)
        }
    return _examples[server.url]


@pytest.fixture
def two_steps(server, url, example) -> str:
    for name, data in example.items():
        server.put("bucket", full(url, name), data)
    return url


def test_everything_is_there_the_manifest_last_and_comes_back_bit_equal(server, url):
    save(url, 10)
    there = names(server, url, 10)
    listed = json.loads(server.buckets["bucket"][full(url, f"10/{MANIFEST}")].data)["files"]
    assert set(listed) == {name for name in there if "/" in name}
    kind = {"gs": "crc32c:", "s3": "md5:"}[server.scheme]
    assert all(digest.startswith(kind) for _, digest in listed.values())
    assert any("/d/" in name for name in listed)  # written by tensorstore
    made = [server.buckets["bucket"][full(url, f"10/{name}")].generation for name in there]
    assert max(made) == server.buckets["bucket"][full(url, f"10/{MANIFEST}")].generation
    step, items, meta = Checkpoints(url).restore({"params": abstract(make_params())})
    assert (step, meta) == (10, {"position": 10})
    assert_same(items["params"], make_params(10))
    assert Checkpoints(url).item_names(10) == ["ema", "params"]
    assert not os.path.exists("gs:") and not os.path.exists("s3:")


def test_what_another_process_writes_is_seen_at_once(server, url, example):
    reader = Checkpoints(url)
    server.put("bucket", full(url, "notes"), b"")
    assert reader.steps() == []
    for step in ("10", "20"):
        for name, data in example.items():
            if name.startswith(f"{step}/"):
                server.put("bucket", full(url, name), data)
        assert reader.latest_step() == int(step)
        assert reader.restore_meta() == (int(step), {"position": int(step)})


def test_a_restore_reads_arrays_once(server, two_steps):
    url = two_steps
    server.requests.clear()
    Checkpoints(url).restore({"params": abstract(make_params())}, step=10)
    large = data_object(server, url, "10/params")
    assert len(server.buckets["bucket"][large].data) > LARGEST / 2
    assert 1 <= [name for _, _, name in server.requests].count(large) <= 2  # ranges of one array
    assert not any(data_object(server, url, "10/ema") == name for _, _, name in server.requests)


def flip(server, url):
    name = data_object(server, url, "20/params")
    data = bytearray(server.buckets["bucket"][name].data)
    data[len(data) // 2] ^= 1
    server.put("bucket", name, bytes(data))


def truncate(server, url):
    server.put("bucket", data_object(server, url, "20/params"), b"0123456789")


def delete(server, url):
    del server.buckets["bucket"][data_object(server, url, "20/params")]


def spoil_manifest(server, url):
    server.put("bucket", full(url, f"20/{MANIFEST}"), b'{"version": 1, "files": {')


def flip_meta(server, url):
    server.put("bucket", full(url, "20/meta/metadata"), b'{"position": 21}')


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
def test_damage_falls_back_to_the_older_step(server, two_steps, caplog, damage, reason):
    damage(server, two_steps)
    checkpoints = Checkpoints(two_steps)
    step, items, meta = checkpoints.restore({"params": abstract(make_params())})
    assert (step, meta) == (10, {"position": 10})
    assert_same(items["params"], make_params(10))
    assert "checkpoint 20 is damaged" in caplog.text and reason in caplog.text
    with pytest.raises(UserError, match="step 20: .*restore a backup"):
        checkpoints.restore({"params": abstract(make_params())}, step=20)


def test_a_damaged_step_is_set_aside_and_saved_again(server, two_steps):
    flip(server, two_steps)
    before = names(server, two_steps, 20)
    for old in ("damaged-3", "damaged-19"):
        server.put("bucket", full(two_steps, f"{old}/params/d/x"), b"")
    with Checkpoints(two_steps) as checkpoints:
        checkpoints.restore({"params": abstract(make_params())})
        assert checkpoints.save(20, {"params": make_params(3)}, {"position": 21}, wait=True)
        step, items, meta = checkpoints.restore({"params": abstract(make_params())})
    assert (step, meta) == (20, {"position": 21})
    assert_same(items["params"], make_params(3))
    assert names(server, two_steps, "damaged-20") == before
    assert names(server, two_steps, "damaged-19") and not names(server, two_steps, "damaged-3")


def test_latest_and_best_are_kept_also_by_another_process_and_what_is_not_ours(server, url):
    metrics = {1: 3.0, 10: 1.0, 100: 2.0}  # each number begins the next
    server.put("bucket", full(url, "notes/20"), b"mine")
    server.put("bucket", full(url, "README"), b"mine")
    for step in metrics:
        save(url, step, metrics=metrics, keep_latest=1, keep_best=1)
    assert Checkpoints(url).steps() == [10, 100]
    top = {name.partition("/")[0] for name in names(server, url)}
    listed = json.loads(server.buckets["bucket"][full(url, f"10/{MANIFEST}")].data)["files"]
    assert set(listed) == {name for name in names(server, url, 10) if "/" in name}
    assert top == {"10", "100", "notes", "README"}


@pytest.mark.parametrize(
    "server", ["gs", pytest.param("s3", marks=pytest.mark.slow)], indirect=True
)
@pytest.mark.timeout(60)
def test_kill_9_just_before_the_manifest(server, url):
    """orbax's own mark is there, and yet the step is none; the next save removes it."""
    kill_in_a_save(url, "bucket.Bucket.write_manifest")
    assert "commit_success.txt" in names(server, url, 2)
    with Checkpoints(url) as checkpoints:
        assert_step_1_is_whole(checkpoints)
        assert names(server, url, 2), "reading must not clean"
        checkpoints.save(3, {"params": {"w": jnp.ones(1000)}}, {}, wait=True)
        assert not names(server, url, 2)
        assert checkpoints.steps() == [1, 3]


def test_a_save_that_fails_is_loud_and_the_next_one_is_tried(server, two_steps, caplog):
    url = two_steps
    with Checkpoints(url) as checkpoints:
        server.refuse = lambda method, bucket, name: 403 if "/d/" in name else 0
        checkpoints.save(30, {"params": make_params()}, {})
        with pytest.raises(UserError, match="step 30 could not .*step 20 is intact"):
            checkpoints.wait()
        server.refuse = lambda method, bucket, name: 403
        checkpoints.save(40, {"params": make_params()}, {})
        assert "CHECKPOINT NOT SAVED: the checkpoint of step 40 " in caplog.text
        assert "the older ones cannot be reached now" in caplog.text
        assert checkpoints.newest_known() is None
        with pytest.raises(UserError, match="step 40 could not"):
            checkpoints.wait()
        server.refuse = lambda method, bucket, name: 0
        assert checkpoints.save(50, {"params": make_params()}, {}, wait=True)
    assert Checkpoints(url).steps() == [20, 50]


@pytest.mark.parametrize("part", ["description", "numbers"])
def test_a_step_that_is_whole_but_cannot_be_read_is_no_damage(server, two_steps, part):
    """... for then an older one would be taken, and the newest set aside."""
    numbers = data_object(server, two_steps, "20/params")
    lost = {"numbers": numbers, "description": full(two_steps, "20/params/_METADATA")}[part]
    server.refuse = lambda method, bucket, name: 403 if name == lost else 0
    with pytest.raises(UserError, match="checkpoint 20 in ..://.* is whole but could not be read"):
        Checkpoints(two_steps).restore({"params": abstract(make_params())})


def test_restores_onto_another_mesh(url):
    def place(tree, shape):
        devices = jax.devices()[: shape[0] * shape[1]]
        mesh = jax.make_mesh(
            shape, ("data", "fsdp"), devices=devices, axis_types=(AxisType.Auto,) * 2
        )
        specs = {"block": {"w": PartitionSpec("data", "fsdp")}, "b": PartitionSpec("fsdp")}
        return jax.tree.map(
            lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), tree, specs
        )

    with Checkpoints(url) as checkpoints:
        checkpoints.save(1, {"params": place(make_params(), (2, 4))}, {}, wait=True)
        target = place(jax.tree.map(jnp.zeros_like, make_params()), (1, 4))
        restored = checkpoints.restore({"params": target})[1]["params"]
    assert_same(restored, make_params())
    assert restored["block"]["w"].sharding == target["block"]["w"].sharding


OF_TWO = """
    import sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    from flm_jax.checkpoint import Checkpoints
    from flm_jax.checkpoint.bucket import Bucket

    url, port, index = sys.argv[1:]
    jax.distributed.initialize("127.0.0.1:" + port, 2, int(index))
    write = Bucket.write_manifest
    Bucket.write_manifest = lambda self, step: (print("manifest", step), write(self, step))
    where = NamedSharding(Mesh(np.array(jax.devices()), "data"), PartitionSpec("data"))
    whole = np.arange(8192, dtype=np.float32)
    array = jax.make_array_from_callback((8192,), where, lambda index: whole[index])
    with Checkpoints(url, keep_latest=1) as checkpoints:
        checkpoints.save(2, {"params": {"w": array}}, {"at": 2}, wait=True)
        step, items, meta = checkpoints.restore({"params": {"w": array}})
    part = items["params"]["w"].addressable_data(0)
    start = len(part) * jax.process_index()
    assert np.array_equal(part, whole[start : start + len(part)]) and len(part) == 4096
    print(step, meta["at"], checkpoints.steps())
"""


@pytest.mark.slow
@LONG
@pytest.mark.timeout(120)
def test_two_processes_write_one_step_and_the_first_its_manifest(server, url):
    port = str(free_port())
    command = [sys.executable, "-c", textwrap.dedent(OF_TWO), url, port]
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    jobs = [
        subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, text=True, env=environ)
        for n in (0, 1)
    ]
    said = [job.communicate(timeout=100)[0].splitlines() for job in jobs]
    said = [[line for line in lines if "Gloo" not in line] for lines in said]
    assert [job.returncode for job in jobs] == [0, 0]
    assert said == [["manifest 2", "2 2 [2]"], ["2 2 [2]"]]
    listed = json.loads(server.buckets["bucket"][full(url, f"2/{MANIFEST}")].data)["files"]
    for n in (0, 1):
        assert any(name.startswith(f"params/ocdbt.process_{n}/d/") for name in listed)


def test_a_copy_is_a_checkpoint_in_either_direction(server, url, example, tmp_path):
    """Copied down, it is verified by the store's checksums; one copied up by its SHA-256."""
    for name, data in example.items():
        path = tmp_path / "down" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    shutil.rmtree(tmp_path / "down" / "20")
    items = Checkpoints(tmp_path / "down").restore({"params": abstract(make_params())})[1]
    assert_same(items["params"], make_params(10))
    largest = max((tmp_path / "down/10/params").rglob("*"), key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    largest.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(manifest.Damaged, match="has changed since"):
        manifest.verify(tmp_path / "down" / "10")

    here = Checkpoints(tmp_path / "up" / "checkpoints")
    with here:
        here.save(20, {"params": make_params(20)}, {}, wait=True)
    for path in (tmp_path / "up" / "checkpoints").rglob("*"):
        if path.is_file():
            name = path.relative_to(tmp_path / "up" / "checkpoints").as_posix()
            server.put("bucket", full(url, f"copy/{name}"), path.read_bytes())
    assert Checkpoints(f"{url}/copy").restore({"params": abstract(make_params())})[0] == 20
    name = data_object(server, url, "copy/20/params")
    content = server.buckets["bucket"][name].data
    server.put("bucket", name, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="20: params/.* has changed since it was written"):
        Checkpoints(f"{url}/copy").restore({"params": abstract(make_params())})


def checked(url: str) -> str:
    with pytest.raises(UserError) as caught:
        Bucket(url).check()
    return str(caught.value)


def test_what_is_wrong_with_a_bucket_is_said_at_once(server, url, monkeypatch):
    library, _, extra = KINDS[server.scheme]
    Bucket(url).check()
    nowhere = f"{server.scheme}://no-such-bucket/run"
    assert checked(nowhere) == (
        f"{nowhere}: there is no bucket no-such-bucket; make it, or check its name"
    )
    for method in ("GET", "POST" if server.scheme == "gs" else "PUT", "DELETE"):
        for status in (401, 403):
            server.refuse = lambda asked, bucket, name, m=method, s=status: s if asked == m else 0
            assert f"{url}: access is refused (" in checked(url), (method, status)
    server.refuse = lambda method, bucket, name: 400
    assert f"{url} cannot be used (" in checked(url)
    monkeypatch.setitem(sys.modules, library, None)
    assert f"run pip install 'flm_jax[{extra}]'" in checked(url)


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("az://bucket/run", "az://bucket/run is neither a local .*, as gs://.* and s3://.* can"),
        ("s3://bucket/", "names no folder in a bucket; write it like s3://bucket/run"),
        ("gs://bucket", "names no folder in a bucket; write it like gs://bucket/run"),
        ("gs:///run", "names no folder in a bucket; write it like gs://bucket/run"),
    ],
)
def test_addresses_that_cannot_be(place, sentence):
    with pytest.raises(UserError, match=sentence):
        Checkpoints(place)


def test_orbax_still_cannot_write_to_s3():
    """Why there is `s3_arrays.py`. When this fails, it may be no longer needed."""
    from orbax.checkpoint._src.serialization import tensorstore_utils

    build = tensorstore_utils.build_kvstore_tspec
    build = getattr(build, "__wrapped__", build)
    with pytest.raises(ValueError, match="should be absolute. Got s3:/bucket/run"):
        build("s3://bucket/run", name="w", use_ocdbt=True)


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"AWS_ACCESS_KEY_ID": ""}, "there are no credentials (.*; set AWS_ACCESS_KEY_ID and"),
        ({"AWS_PROFILE": "nobody"}, "there are no credentials (.*nobody.*; set AWS_ACC"),
        ({"AWS_ACCESS_KEY_ID": "other"}, "access is refused (.*; check the keys"),
        ({"AWS_DEFAULT_REGION": "eu-other-2"}, "the region is not that .*eu-test-1.*AWS_REGION"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:PORT"}, "the service does not answer (.*PORT"),
    ],
)
def test_what_is_wrong_with_settings_of_s3_is_said(s3, monkeypatch, variables, sentence):
    port = str(free_port())
    monkeypatch.setenv("AWS_DEFAULT_REGION", os.environ["AWS_REGION"])
    for name, value in variables.items():
        if value:
            monkeypatch.setenv(name, value.replace("PORT", port))
        else:
            monkeypatch.delenv(name)
    url = new_place(s3)
    sentence = sentence.replace("(", r"\(").replace("PORT", port)
    assert re.search(f"^{url}: {sentence}", checked(url))


@pytest.mark.timeout(60)
def test_a_service_that_takes_a_request_and_says_nothing(s3, monkeypatch):
    monkeypatch.setattr(stores, "PATIENCE_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "the service does not answer (ReadTimeoutError" in checked(new_place(s3))


def test_a_profile_is_enough_and_both_libraries_follow_it(s3, monkeypatch, tmp_path):
    import s3fs

    files = {"AWS_CONFIG_FILE": "config", "AWS_SHARED_CREDENTIALS_FILE": "credentials"}
    where = {"endpoint_url": s3.url + "/", "region": os.environ["AWS_REGION"]}
    keys = {"aws_access_key_id": os.environ["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": "x"}
    for (variable, name), head, lines in zip(
        files.items(), ("profile mine", "mine"), (where, keys), strict=True
    ):
        text = "".join(f"{key} = {value}\n" for key, value in lines.items())
        (tmp_path / name).write_text(f"[{head}]\n{text}")
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "")
    for name in ("ENDPOINT_URL", "REGION", "DEFAULT_REGION", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.delenv(f"AWS_{name}")
    monkeypatch.setenv("AWS_PROFILE", "mine")
    s3fs.S3FileSystem.clear_instance_cache()
    s3.requests.clear()
    Bucket(new_place(s3)).check()
    assert {"PUT", "DELETE"} <= {method for method, _, _ in s3.requests}
    s3fs.S3FileSystem.clear_instance_cache()


def test_orbax_is_changed_for_s3_alone_and_a_changed_orbax_is_noticed(s3, monkeypatch):
    from orbax.checkpoint._src.serialization import tensorstore_utils

    teach, spec_of = s3_arrays.teach_orbax, stores.STORES["s3"].tensorstore_spec
    teach(spec_of)
    build = tensorstore_utils.build_kvstore_tspec
    original = build.__wrapped__
    teach(spec_of)
    assert tensorstore_utils.build_kvstore_tspec is build, "wrapped twice"
    for place in ("/a/b", "gs://a/b"):
        for ocdbt in (True, False):
            assert build(place, "w", use_ocdbt=ocdbt) == original(place, "w", use_ocdbt=ocdbt)
    ours = build("s3://bucket/a", "w", use_ocdbt=False)
    assert (ours["driver"], ours["bucket"], ours["path"]) == ("s3", "bucket", "a/w")

    for base in ("gs://bucket/run/", {"driver": "gcs", "bucket": "b", "path": "run", "root": "/"}):

        def moved(directory, name=None, *, use_ocdbt=True, base=base):
            return {"driver": "ocdbt", "base": base}

        monkeypatch.setattr(tensorstore_utils, "build_kvstore_tspec", moved)
        assert "cannot be shown the way to s3://" in checked(new_place(s3))
        assert tensorstore_utils.build_kvstore_tspec is moved
    monkeypatch.delattr(tensorstore_utils, "build_kvstore_tspec")
    assert "install orbax-checkpoint 0.12.8" in checked(new_place(s3))


def test_etags_that_are_no_md5s(s3, tmp_path, caplog):
    """... as in a bucket with its owner's key: they tell a change there, and nothing elsewhere."""
    url = new_place(s3)
    s3.md5_etags = False
    save(url, 10, 20)
    listed = json.loads(s3.buckets["bucket"][full(url, f"10/{MANIFEST}")].data)["files"]
    assert all(digest.startswith("etag:") for _, digest in listed.values())
    flip(s3, url)
    assert Checkpoints(url).restore({"params": abstract(make_params())})[0] == 10
    assert "checkpoint 20 is damaged" in caplog.text
    for name in names(s3, url, 10):
        path = tmp_path / "10" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(s3.buckets["bucket"][full(url, f"10/{name}")].data)
    assert Checkpoints(tmp_path).restore({"params": abstract(make_params())})[0] == 10
    assert "files are verified by their sizes alone" in caplog.text


def test_an_object_that_was_copied_in_parts_is_compared_by_its_bytes(s3):
    url = new_place(s3)
    save(url, 10)
    data = b"a" * (6 << 20)
    part = full(url, "10/params/part")
    manifest_name = full(url, f"10/{MANIFEST}")
    with Bucket(url)._fs.open(f"bucket/{part}", "wb", block_size=5 << 20) as file:
        file.write(data)
    assert s3.buckets["bucket"][part].etag.endswith('-1"')
    listed = json.loads(s3.buckets["bucket"][manifest_name].data)
    listed["files"]["params/part"] = [len(data), "md5:" + hashlib.md5(data).hexdigest()]
    s3.put("bucket", manifest_name, json.dumps(listed).encode())
    assert Bucket(url).verify(10, ["params"])
    s3.put("bucket", part, data[:-1] + b"b").etag = '"0-1"'
    with pytest.raises(manifest.Damaged, match="params/part has changed"):
        Bucket(url).verify(10, ["params"])


def test_what_cannot_be_deleted_is_said(server, two_steps, caplog):
    """S3 answers a refusal to delete one of many with status 200."""
    del server.buckets["bucket"][full(two_steps, f"20/{MANIFEST}")]
    kept = data_object(server, two_steps, "20/params")
    server.refuse = lambda method, bucket, name: 403 if (method, name) == ("DELETE", kept) else 0
    with Checkpoints(two_steps) as checkpoints:
        assert not checkpoints.save(30, {"params": make_params()}, {})
        assert "CHECKPOINT NOT SAVED: the checkpoint of step 30" in caplog.text
        with pytest.raises(UserError, match="step 30 could not"):
            checkpoints.wait()
    assert kept in server.buckets["bucket"] and Checkpoints(two_steps).steps() == [10]
