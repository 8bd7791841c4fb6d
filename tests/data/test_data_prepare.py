"""Preparing rows: the same bytes for any processes and interruptions; locks, space, deaths."""

import errno
import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import types

import numpy as np
import published_layouts as layouts
import pytest
from commands import flm
from recipes import make_tokenizer

from flm_jax import data, errors
from flm_jax.data import base, packing, shards, workers, wrap
from flm_jax.data import rows as rows_lib
from flm_jax.data.published import PUBLISHED

LENGTH = 9
ROOT = pathlib.Path(__file__).resolve().parents[2]


class Numbers(base.MemoryCorpus):
    """Documents of different lengths, empty ones among them; "x" becomes "-"."""

    name = "numbers"

    def __init__(self, count: int = 90, seed: int = 0):
        self.count, self.seed = count, seed

    def read(self):
        sizes = np.random.default_rng(self.seed).integers(0, 30, self.count)
        texts = [("x" + str(i) * size)[: int(size)] for i, size in enumerate(sizes)]
        return {"train": texts, "valid": texts[:20], "test": texts[:20]}

    def detokenize(self, text):
        return text.replace("x", "-")


class Deadly(Numbers):
    """Kills the process that detokenises it, or raises."""

    def __init__(self, how: str):
        super().__init__()
        self.how = how

    def detokenize(self, text):
        if self.how == "exit":
            os._exit(9)
        raise errors.UserError("no good") if self.how == "user" else ValueError("a bug")


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer({"name": "characters"}, lambda: ["-0123456789"])


@pytest.fixture
def small(monkeypatch):
    """Shards of 7 rows, chunks of 13 documents or 100 characters."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 7 * LENGTH * 2)
    monkeypatch.setattr(workers, "DOCUMENTS", 13)
    monkeypatch.setattr(workers, "CHARACTERS", 100)


def content(folder):
    """Relative name -> bytes of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def expected(order):
    texts = order.corpus.source(order.split)
    documents = [order.tokenizer.encode(order.corpus.detokenize(text)) for text in texts]
    ids = order.tokenizer.bos_id, order.tokenizer.eos_id
    if order.packing == "wrap":
        made = wrap.wrap(documents, order.length, *ids, order.drop_remainder_every)
    else:
        made = wrap.one_per_row(documents, order.length, *ids, order.tokenizer.pad_id)
    return np.concatenate(list(made))


ORDERS = {
    "wrap": dict(),
    "remainders dropped": dict(drop_remainder_every=11),
    "groups of a chunk": dict(drop_remainder_every=13),
    "one per row": dict(packing="one_per_row", length=32),
    "documents over several shards": dict(length=3),
}


def make_order(tokenizer, name, corpus=None):
    options = {"length": LENGTH} | ORDERS[name]
    return packing.Order(corpus or Numbers(), tokenizer, "train", **options)


@pytest.mark.parametrize("name", ORDERS)
def test_rows_are_those_of_the_definition_wherever_it_is_interrupted(
    tokenizer, tmp_path, small, monkeypatch, name
):
    order = make_order(tokenizer, name)
    rows, made = packing.prepare_split(order, tmp_path / "whole")
    np.testing.assert_array_equal(rows[:], expected(order))
    assert made and len(rows.manifest["shards"]) > 9
    lengths = [len(text) for text in order.corpus.source("train")]
    assert rows.manifest["documents"] == len(lengths)
    assert rows.manifest["text_tokens"] == sum(lengths)
    assert rows.manifest["document_lengths"]["counts"][0] == lengths.count(0) > 0
    assert sum(rows.manifest["document_lengths"]["counts"]) == len(lengths)

    written, finish = [], shards.Writer.finish

    def interrupted(writer, place):  # after each second shard
        finish(writer, place)
        written.append(writer.finished)
        if len(written) % 2 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(shards.Writer, "finish", interrupted)
    while True:
        try:
            again, _ = packing.prepare_split(order, tmp_path / "parts")
            break
        except KeyboardInterrupt:
            assert not complete(tmp_path / "parts")  # nothing that looks complete
    assert written == list(range(1, len(rows.manifest["shards"]) + 1))  # none was made twice
    assert content(again.path) == content(rows.path)


def complete(cache):
    return [path for path in (cache / "rows").iterdir() if not path.name.endswith(".part")]


def test_number_of_processes_does_not_show(tokenizer, tmp_path, small):
    order = make_order(tokenizer, "remainders dropped")
    alone, _ = packing.prepare_split(order, tmp_path / "0")
    for processes in (1, 3):
        rows, made = packing.prepare_split(order, tmp_path / str(processes), processes)
        assert made and content(rows.path) == content(alone.path)
        assert rows.path.name == alone.path.name


@pytest.mark.parametrize("left", ["shard", "note", "more shards", "all but the name"])
def test_what_a_kill_leaves_is_cleared_up(tokenizer, tmp_path, small, monkeypatch, left):
    order = make_order(tokenizer, "wrap")
    whole, _ = packing.prepare_split(order, tmp_path / "whole")
    finish, rename = shards.Writer.finish, pathlib.Path.rename

    def finish_four(writer, place):
        finish(writer, place)
        if writer.finished == 4 and left != "all but the name":
            raise KeyboardInterrupt

    def rename_shards_only(path, target):
        if path.name.endswith(".part"):
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shards.Writer, "finish", finish_four)
        patch.setattr(pathlib.Path, "rename", rename_shards_only)
        packing.prepare_split(order, tmp_path / "cut")
    (part,) = (tmp_path / "cut" / "rows").glob("*.part")
    if left == "shard":
        (part / "shard-00003.npy").write_bytes(b"half a shard")
    elif left == "note":
        (part / "shard-00001.json").write_text('{"file": "shard-00001.npy", "ro')
    elif left == "more shards":
        (part / "shard-00004.npy.tmp").write_bytes(b"started")
        (part / "shard-99999.npy").write_bytes(b"of another time")
    rows, _ = packing.prepare_split(order, tmp_path / "cut")
    assert content(rows.path) == content(whole.path)


SCRIPT = """
import sys
sys.path[:0] = {folders!r}
import test_data_prepare as t
from flm_jax import tokenizers
from flm_jax.data import packing, shards, workers

if __name__ == "__main__":
    shards.SHARD_BYTES, workers.DOCUMENTS = 500 * t.LENGTH * 2, 50
    tokenizer = tokenizers.TOKENIZERS["characters"]().build(lambda: ["-0123456789"])
    order = t.make_order(tokenizer, "wrap", t.Numbers(int(sys.argv[3])))
    rows, made = packing.prepare_split(order, sys.argv[1], int(sys.argv[2]))
    print("made" if made else "found", rows.path)
"""


def start(tmp_path, cache, processes, count=10_000):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(folders=[str(ROOT / "tests/data"), str(ROOT / "tests")]))
    command = [sys.executable, str(script), str(cache), str(processes), str(count)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def children(pid):
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(words[1]) == pid and words[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
def test_kill_minus_9_costs_one_shard_and_leaves_no_process(tmp_path):
    whole = start(tmp_path, tmp_path / "whole", 0)
    killed = start(tmp_path, tmp_path / "cut", 1)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "cut").glob("rows/*.part/shard-00004.json")):
        assert time.monotonic() < deadline and killed.poll() is None, killed.communicate()
        time.sleep(0.002)
    offspring = children(killed.pid)
    killed.send_signal(signal.SIGSTOP)
    time.sleep(0.5)  # the worker has done all it was given, and waits
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert offspring
    (part,) = (tmp_path / "cut" / "rows").iterdir()
    notes = sorted(path.name for path in part.glob("shard-*.json"))
    kept = {path: path.stat().st_ino for path in part.glob("shard-*.npy")}
    assert part.name.endswith(".part")
    again = start(tmp_path, tmp_path / "cut", 1)
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0 and out.startswith("made"), err
    folder = part.with_name(part.name.removesuffix(".part"))
    done = len(notes)
    for path, inode in kept.items():
        if int(path.stem.removeprefix("shard-")) < done:
            assert (folder / path.name).stat().st_ino == inode  # the very same file
    assert whole.communicate(timeout=60) and whole.returncode == 0
    assert content(folder) == content(tmp_path / "whole" / "rows" / folder.name)
    while any(os.path.exists(f"/proc/{pid}") for pid in offspring):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.01)


def test_memory_does_not_grow_with_the_corpus(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 1 << 15)
    monkeypatch.setattr(workers, "DOCUMENTS", 100)
    monkeypatch.setattr(rows_lib, "_BLOCK", 1 << 12)
    peaks = []
    for count in (20, 300, 3000):  # the first one imports what is needed
        folder = layouts.lm1b_folder(
            tmp_path / str(count), train=[f"{n:010}" * 8 for n in range(count)]
        )
        corpus = PUBLISHED["lm1b"](str(folder))
        order = packing.Order(corpus, tokenizer, "train", 100)
        corpus.source("train")[0]  # counted
        tracemalloc.start()
        rows, made = packing.prepare_split(order, tmp_path / "cache")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert made and rows.manifest["documents"] == count
    text = 3000 * 80
    assert peaks[2] < peaks[1] + text / 8, peaks


def test_two_at_once_make_it_once(tmp_path):
    both = [start(tmp_path, tmp_path / "cache", 0, 5000) for _ in range(2)]
    results = [process.communicate(timeout=60) for process in both]
    assert all(process.returncode == 0 for process in both), results
    assert sorted(out.split()[0] for out, _ in results) == ["found", "made"]
    assert len({out.split()[1] for out, _ in results}) == 1


def test_who_comes_second_waits_and_says_so(tokenizer, tmp_path, small, capfd):
    order = make_order(tokenizer, "wrap")
    other = packing.prepare_split(order, tmp_path / "other")[0].path.name
    done = []
    with shards.lock(tmp_path / "cache" / "locks" / other, "here"):
        thread = threading.Thread(
            target=lambda: done.append(packing.prepare_split(order, tmp_path / "cache"))
        )
        thread.start()
        thread.join(0.5)
        assert thread.is_alive() and not (tmp_path / "cache" / "rows").exists()
        assert f"waiting for process {os.getpid()}, which is preparing" in capfd.readouterr().err
    thread.join(20)
    assert done and done[0][1]


def test_a_file_system_without_locks_is_told(tokenizer, tmp_path, small, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert packing.prepare_split(make_order(tokenizer, "wrap"), tmp_path)[1]
    assert "cannot be locked (No locks available): let no two processes" in caplog.text


def disk(monkeypatch, free):
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=free()))


def test_too_little_space_is_told_before_anything_is_written(
    tokenizer, tmp_path, small, monkeypatch
):
    order = make_order(tokenizer, "wrap")
    with monkeypatch.context() as patch:
        disk(patch, lambda: 2000)
        monkeypatch.setattr(shards.Writer, "add", lambda *_: pytest.fail("written"))
        with pytest.raises(errors.UserError, match=r"need about 0\.0\d MB .* 0\.00 MB free; free"):
            packing.prepare_split(order, tmp_path)
    assert not list((tmp_path / "rows").iterdir())


def test_space_that_runs_out_later_keeps_what_is_done(tokenizer, tmp_path, small, monkeypatch):
    order = make_order(tokenizer, "wrap")
    with monkeypatch.context() as patch:
        frees = iter([10**9] * 3 + [10])
        disk(patch, lambda: next(frees))
        with pytest.raises(errors.UserError, match="what is done is kept"):
            packing.prepare_split(order, tmp_path / "a")
    (part,) = (tmp_path / "a" / "rows").iterdir()
    assert len(list(part.glob("*.npy"))) == 3
    rows, _ = packing.prepare_split(order, tmp_path / "a")
    assert content(rows.path) == content(packing.prepare_split(order, tmp_path / "b")[0].path)


def test_a_disk_that_fills_up_in_the_middle_of_a_shard(tokenizer, tmp_path, small, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards.os, "fsync", full)
    with pytest.raises(errors.UserError, match="cannot write packed rows .* No space left"):
        packing.prepare_split(make_order(tokenizer, "wrap"), tmp_path)


@pytest.mark.parametrize(
    ("how", "error", "sentence"),
    [
        ("exit", errors.UserError, "process died, perhaps.*fewer --workers"),
        ("user", errors.UserError, "^no good$"),
        ("bug", ValueError, "^a bug$"),
    ],
)
def test_what_goes_wrong_in_a_process_is_told_here(tokenizer, tmp_path, how, error, sentence):
    order = make_order(tokenizer, "wrap", Deadly(how))
    with pytest.raises(error, match=sentence):
        packing.prepare_split(order, tmp_path, 2)


CONFIG = """
def get_config():
    return {
        "data": {"name": "text_files", "length": 8, "options": {"path": PATH}},
        "tokenizer": {"name": "characters"},
    }
"""


def command(folder, *flags):
    environment = {**os.environ, "FLM_JAX_CACHE": str(folder / "cache")}
    return flm("prepare", f"--config={folder / 'c.py'}", *flags, env=environment)


def test_the_command_prepares_once_and_training_finds_it(tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"document {i}\n" for i in range(300)))
    (tmp_path / "c.py").write_text(CONFIG.replace("PATH", repr(str(text))))
    place = tmp_path / "rows here"
    first, second = (command(tmp_path, f"--data_dir={place}", "--workers=1") for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "train: prepared in" in first.stdout and "valid: prepared in" in first.stdout
    assert second.stdout.count("already prepared, nothing to do") == 2
    monkeypatch.setattr(packing, "_make", lambda *_: pytest.fail("made again"))
    section = {"name": "text_files", "length": 8, "options": {"path": str(text)}}
    loaded = data.load_data(section, {"name": "characters"}, place)
    assert str(loaded.rows["train"].path) in first.stdout

    shard = loaded.rows["valid"].path / "shard-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    for flags, sentence in (
        ([f"--data_dir={place}", "--verify"], "shard-00000.npy does not have the SHA-256 it was"),
        (["--workers=-1"], "--workers=-1 must be at least 0"),
        (["--splits=train,dev"], "has no split 'dev'; it has train, valid, test"),
        (["words"], "unexpected argument 'words'"),
        (["--config.data.length=9999999", "--workers=0"], "not enough for one row of length"),
    ):
        done = command(tmp_path, *flags)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert sentence in done.stderr and len(done.stderr.splitlines()) == 1
