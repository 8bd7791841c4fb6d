"""Workdirs in a bucket: who holds one, what is brought there and fetched, what is refused."""

import json
import threading
import time

import pytest
from test_bucket import full, names

from flm_jax.checkpoint import BucketWorkdir, checkpoints_of, fetched, lease, stores
from flm_jax.checkpoint.address import Address
from flm_jax.errors import UserError

CONFIG = b'{"the": "config"}'


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(lease, "BEAT_S", 0.1)
    monkeypatch.setattr(lease, "SILENT_S", 30.0)  # a busy machine is no dead holder
    monkeypatch.setattr(lease, "POLL_S", 0.02)
    on_machine(monkeypatch, tmp_path, "first")


def on_machine(monkeypatch, tmp_path, name: str) -> None:
    """From now on this process is on another machine, with a disk of its own."""
    monkeypatch.setenv("FLM_JAX_CACHE", str(tmp_path / name))
    monkeypatch.setattr(lease.socket, "gethostname", lambda: name)


def taken(url: str) -> BucketWorkdir:
    made = BucketWorkdir(url)
    made.take()
    return made


def die(held: BucketWorkdir, monkeypatch=None) -> None:
    """What a kill leaves of a holder; he is soon taken for dead."""
    held._lease._over.set()
    if monkeypatch is not None:
        monkeypatch.setattr(lease, "SILENT_S", 3.0)


def write(held: BucketWorkdir, **files: str) -> None:
    for name, text in files.items():
        path = held.folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def content(server, url: str) -> dict[str, bytes]:
    """What is below an address."""
    return {name: server.buckets["bucket"][full(url, name)].data for name in names(server, url)}


def begun(url: str) -> BucketWorkdir:
    held = taken(url)
    write(held, config_json=CONFIG.decode(), metrics_jsonl="1\n", samples__step_1="a")
    held.push()
    return held


def test_one_command_at_a_time_and_the_next_one_at_once(url, monkeypatch, tmp_path):
    first = taken(url)
    on_machine(monkeypatch, tmp_path, "second")
    with pytest.raises(UserError, match=rf"another command is training in {url} \(first, proc"):
        taken(url)
    time.sleep(3 * lease.BEAT_S)
    first.push()  # and it noticed nothing
    first.give_back()
    monkeypatch.setattr(lease.Lease, "_falls_silent", lambda *_: pytest.fail("it waits"))
    taken(url).give_back()


def test_a_dead_holder_is_waited_for_elsewhere_and_not_here(url, monkeypatch, tmp_path):
    die(begun(url))
    with monkeypatch.context() as patch:
        patch.setattr(lease.Lease, "_falls_silent", lambda *_: pytest.fail("it waits"))
        here = taken(url)  # the caller holds the folder, so that the holder of this token is dead
    die(here, monkeypatch)
    on_machine(monkeypatch, tmp_path, "second")
    start = time.monotonic()
    there = taken(url)
    assert time.monotonic() - start > lease.SILENT_S
    assert (there.folder / "config.json").read_bytes() == CONFIG
    there.give_back()


def test_two_that_wait_for_a_dead_one_do_not_both_get_it(url, monkeypatch, tmp_path):
    die(begun(url), monkeypatch)
    on_machine(monkeypatch, tmp_path, "second")
    both = [lease.Lease(Address(url)) for _ in range(2)]
    said = []

    def take(one):
        try:
            said.append(one.take())
        except UserError as error:
            said.append(str(error))

    threads = [threading.Thread(target=take, args=[one]) for one in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [text for text in said if "another command is training" in text]
    assert len(said) == 2 and len(refused) == 1, said
    for one in both:
        one.release()


def test_a_holder_that_was_taken_over_brings_nothing_more(server, url, monkeypatch, tmp_path):
    slow = begun(url)
    die(slow, monkeypatch)  # it stands still
    on_machine(monkeypatch, tmp_path, "second")
    other = taken(url)
    before = content(server, url)
    write(slow, metrics_jsonl="1\n2\n")
    with pytest.raises(lease.Lost, match=rf"{url} was taken over by another command \(second, pr"):
        slow.push()
    assert slow.lost is not None
    slow.give_back()
    after = content(server, url)
    assert before.pop("LOCK.json") and after.pop("LOCK.json") and before == after
    other.push()
    other.give_back()


def test_the_lock_of_a_stranger_and_an_answer_that_is_lost(server, url):
    """A write that arrived though nobody heard of it is no takeover."""
    held = taken(url)
    die(held)
    name = full(url, "LOCK.json")
    server.put("bucket", name, server.buckets["bucket"][name].data + b" ")
    held.push()
    server.put("bucket", name, b"not ours")
    with pytest.raises(lease.Lost, match="another command \\(unknown\\)"):
        held.push()
    taken(url).give_back()


def test_a_holder_without_a_network_goes_on_when_it_is_back(server, url):
    held = begun(url)
    server.refuse = lambda method, bucket, name: 403
    time.sleep(3 * lease.BEAT_S)
    write(held, metrics_jsonl="1\n2\n")
    with pytest.raises(UserError, match=f"{url}: access is refused"):
        held.push()
    server.refuse = lambda method, bucket, name: 0
    held.push()
    assert held.lost is None and content(server, url)["metrics.jsonl"] == b"1\n2\n"
    held.give_back()


def test_what_has_changed_is_brought_and_what_tells_of_it_last(server, url):
    held = taken(url)
    write(held, report_html="r", metrics_jsonl="1", tokenizer__a="a", run_json="{}", z="z")
    write(held, config_json="{}", compiled__x="x", checkpoints__1="c", _hidden="h", b_tmp="t")
    server.requests.clear()
    held.push()
    puts = [name.rpartition("/")[2] for method, _, name in server.requests
            if method in ("POST", "PUT") and not name.endswith("LOCK.json")]  # fmt: skip
    assert puts == ["config.json", "a", "z", "metrics.jsonl", "report.html", "run.json"]
    write(held, metrics_jsonl="12")
    server.requests.clear()
    held.push()
    puts = {name for method, _, name in server.requests if method in ("POST", "PUT")}
    assert puts == {full(url, name) for name in ("LOCK.json", "metrics.jsonl")}
    held.give_back()


def test_another_machine_goes_on_with_what_is_there_and_the_first_one_with_that(
    url, monkeypatch, tmp_path
):
    first = begun(url)
    write(first, samples__step_2="lost with the machine", compiled__x="stays")
    die(first, monkeypatch)
    on_machine(monkeypatch, tmp_path, "second")
    second = taken(url)
    found = {p.name: p.read_text() for p in second.folder.rglob("*") if p.is_file()}
    assert found.pop(".bucket.json") and found == {
        "config.json": CONFIG.decode(), "metrics.jsonl": "1\n", "step.1": "a",
    }  # fmt: skip
    write(second, metrics_jsonl="1\n5\n")
    second.push()
    second.give_back()
    on_machine(monkeypatch, tmp_path, "first")
    again = taken(url)
    assert (again.folder / "metrics.jsonl").read_text() == "1\n5\n"
    assert not (again.folder / "samples/step.2").exists()
    assert (again.folder / "compiled/x").exists()
    again.give_back()


def test_a_restart_on_the_same_machine_keeps_what_was_not_brought(server, url):
    first = begun(url)
    write(first, samples__step_2="b")
    die(first)
    server.requests.clear()
    again = taken(url)
    again.push()
    puts = [name for method, _, name in server.requests if method in ("POST", "PUT")]
    assert full(url, "samples/step.2") in puts and full(url, "config.json") not in puts
    again.give_back()


def test_a_reader_disturbs_nobody_and_sees_what_is_there(server, url):
    held = begun(url)
    write(held, metrics_jsonl="1\n2\n")
    folder = fetched(url)
    assert folder != held.folder and (folder / "metrics.jsonl").read_text() == "1\n"
    assert checkpoints_of(folder) == checkpoints_of(held.folder) == f"{url}/checkpoints"
    held.push()
    assert (fetched(url) / "metrics.jsonl").read_text() == "1\n2\n"
    del server.buckets["bucket"][full(url, "samples/step.1")]
    assert not (fetched(url) / "samples/step.1").exists()
    held.give_back()


def test_places_that_are_no_workdir_are_refused(server, url):
    with pytest.raises(UserError, match=f"{url} holds no config.json, so that no run is there"):
        fetched(url)
    server.put("bucket", full(url, "1200/MANIFEST.json"), b"{}")
    for use in (taken, fetched):
        with pytest.raises(UserError, match=f"{url} holds 1200 but no config.json.*train.mirror"):
            use(url)


@pytest.mark.timeout(60)
def test_a_service_that_stalls(server, url, monkeypatch):
    """Every request is given up in time, and the sentence says what it was for."""
    held = begun(url)
    monkeypatch.setattr(stores, "PATIENCE_S", 0.5)
    stalled = threading.Event()
    server.refuse = lambda method, bucket, name: stalled.wait(20) and 0
    start = time.monotonic()
    with pytest.raises(UserError, match=f"{url}: the service does not answer \\(TimeoutError"):
        held.push()
    with pytest.raises(UserError, match=f"{url}: the service does not answer \\(TimeoutError"):
        fetched(url)
    assert time.monotonic() - start < 5
    stalled.set()
    server.refuse = lambda method, bucket, name: 0
    monkeypatch.undo()
    held.push()
    held.give_back()


def test_a_damaged_mark_is_said(url):
    held = begun(url)
    held.give_back()
    (held.folder / ".bucket.json").write_text("{")
    with pytest.raises(UserError, match=f"cannot be read .*; remove {held.folder}"):
        checkpoints_of(held.folder)


def test_a_run_of_an_earlier_version_is_read_where_its_checkpoints_are(tmp_path):
    assert checkpoints_of(tmp_path) == tmp_path / "checkpoints"
    stored = {"train": {"checkpoints": "gs://bucket/old"}}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert checkpoints_of(tmp_path) == "gs://bucket/old"
