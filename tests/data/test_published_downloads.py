"""Downloads against a server on this machine that truncates, stalls, fails and lies."""

import contextlib
import errno
import fcntl
import hashlib
import http.server
import io
import threading
from unittest.mock import Mock

import published_layouts as layouts
import pytest
import tqdm

from flm_jax.data.published.lm1b import Lm1b
from flm_jax.data.published.text8 import Text8
from flm_jax.errors import UserError
from flm_jax.host import download
from flm_jax.host.download import Download, fetch
from flm_jax.tokenizers import bert

CONTENT = bytes(range(256)) * 4000  # about 1 MB
SIZE, SHA = len(CONTENT), hashlib.sha256(CONTENT).hexdigest()


class Site:
    """What the server does, request by request.

    Attributes:
      plan: for each request a word: "ok", "cut" (half of what is asked, then the connection ends),
        "stall" (a few bytes, then silence), "whole" (no ranges), "wrong" (another part than asked),
        or a status code; the last word goes on.
      ranges: the Range header of each request, "" for none.
    """

    def __init__(self, content=CONTENT, tag='"one"'):
        self.content, self.tag, self.plan, self.ranges = content, tag, ["ok"], []
        self.over = threading.Event()

    def word(self):
        return self.plan.pop(0) if len(self.plan) > 1 else self.plan[0]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        site, word = self.server.site, self.server.site.word()
        wanted = self.headers.get("Range", "")
        site.ranges.append(wanted)
        self.close_connection = True
        if isinstance(word, int):
            self.send_error(word)
            return
        known = self.headers.get("If-Range")
        start = int(wanted[6:-1]) if wanted and word != "whole" else 0
        if known and known != site.tag:
            start = 0
        if start >= len(site.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(site.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = site.content[start:]
        self.send_response(206 if start else 200)
        if start:
            first = start + 1 if word == "wrong" else start
            last = len(site.content) - 1
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(site.content)}")
        if site.tag:
            self.send_header("ETag", site.tag)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if word == "cut":
            data = data[: max(1, len(data) // 2)]
        elif word == "stall":
            self.wfile.write(data[:100])
            self.wfile.flush()
            site.over.wait(10)
            return
        with contextlib.suppress(OSError):
            self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.site = Site()
    server.site.address = f"http://127.0.0.1:{server.server_port}/file.bin"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server.site
    server.site.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def get(site, folder, sha256=SHA, size=SIZE, attempts=4, timeout=5.0, address=""):
    file = Download(address or site.address, "file.bin", sha256, size)
    return fetch(file, folder, attempts=attempts, wait=0.001, timeout=timeout)


def test_a_file_arrives_whole_and_only_once(site, tmp_path):
    path = get(site, tmp_path / "new/folder")
    assert path.read_bytes() == CONTENT
    assert get(site, tmp_path / "new/folder") == path
    assert site.ranges == [""]
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


def test_broken_connections_are_resumed_where_they_broke(site, tmp_path, capfd):
    site.plan = ["cut", "cut", 500, 503, "ok"]
    assert get(site, tmp_path).read_bytes() == CONTENT
    half, more = len(CONTENT) // 2, len(CONTENT) * 3 // 4
    assert site.ranges == ["", f"bytes={half}-", *[f"bytes={more}-"] * 3]
    assert "trying again" in capfd.readouterr().err


def test_silence_counts_as_a_broken_connection(site, tmp_path):
    site.plan = ["stall", "ok"]
    assert get(site, tmp_path, timeout=0.2).read_bytes() == CONTENT
    assert site.ranges[1].startswith("bytes=")


def test_a_killed_download_goes_on(site, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert site.ranges == ["bytes=1000-"]


def test_a_download_killed_just_before_its_name(site, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert site.ranges == []
    (tmp_path / "file.bin").rename(tmp_path / "file.bin.part")
    assert get(site, tmp_path, "", 0).read_bytes() == CONTENT  # size unknown: the server is asked
    assert site.ranges == [f"bytes={len(CONTENT)}-"]


def test_too_long_a_part_is_thrown_away(site, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT + b"more")
    assert get(site, tmp_path, "", 0).read_bytes() == CONTENT
    (tmp_path / "file.bin").unlink()
    (tmp_path / "file.bin.part").write_bytes(CONTENT + b"more")
    assert get(site, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("word", ["whole", "wrong"])
def test_servers_that_cannot_resume(site, tmp_path, word):
    site.plan = ["cut", word, "ok"]
    assert get(site, tmp_path).read_bytes() == CONTENT


def test_a_file_that_changed_in_between_is_not_mixed(site, tmp_path):
    site.plan = ["cut", 500]
    with pytest.raises(UserError, match="500.*bytes are kept in .*file.bin.part"):
        get(site, tmp_path, "", 0, attempts=2)
    site.content, site.tag, site.plan = CONTENT[::-1], '"two"', ["ok"]
    assert get(site, tmp_path, "", 0).read_bytes() == CONTENT[::-1]


def test_a_server_that_never_works_again(site, tmp_path):
    site.plan = [500]
    with pytest.raises(UserError, match=r"answered 500 .*4 attempts.; .*put it there as"):
        get(site, tmp_path)
    assert len(site.ranges) == 4 and not list(tmp_path.iterdir())


def test_pauses_double_until_something_arrives(site, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    site.plan = [500, 502, 503, "cut", 500, "ok"]
    file = Download(site.address, "file.bin", SHA, SIZE)
    assert fetch(file, tmp_path, wait=8.0).read_bytes() == CONTENT
    for pause, expected in zip(pauses, [8, 16, 32, 8, 16], strict=True):
        assert 0.75 * expected <= pause <= 1.25 * expected, pauses


def test_progress_resets_the_patience(site, tmp_path):
    site.plan = [500, "cut", 500, "cut", 500, "cut", "ok"]
    assert get(site, tmp_path, attempts=3).read_bytes() == CONTENT


@pytest.mark.parametrize("code", [403, 404])
def test_hopeless_answers_are_not_repeated(site, tmp_path, code):
    site.plan = [code]
    with pytest.raises(UserError, match=f"answered {code} .*put it there as .*file.bin"):
        get(site, tmp_path)
    assert len(site.ranges) == 1


def test_nobody_answers(tmp_path):
    with pytest.raises(UserError, match="cannot download http://127.0.0.1:9/.*connection failed"):
        get(None, tmp_path, attempts=2, address="http://127.0.0.1:9/file.bin")


@pytest.mark.parametrize(
    "sha256, size, sentence",
    [("0" * 64, 0, "has the SHA-256 .* instead of 0000"), ("", 999, "has .* bytes instead of 999")],
)
def test_another_file_than_the_published_one(site, tmp_path, sha256, size, sentence):
    with pytest.raises(UserError, match=f"is not the published file: it {sentence}"):
        get(site, tmp_path, sha256, size)
    assert not list(tmp_path.iterdir())


def test_two_downloads_at_once(site, tmp_path):
    with (tmp_path / "file.bin.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is downloading"):
            get(site, tmp_path)
    assert get(site, tmp_path).read_bytes() == CONTENT


def test_a_disk_that_is_too_small(site, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 600_000})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        UserError, match="file.bin needs 1 MB more, but the disk of .* has 1 MB free"
    ):
        get(site, tmp_path)
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:-600_000])  # the rest fits
    assert get(site, tmp_path).read_bytes() == CONTENT


def test_folders_that_cannot_be_written(site, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="cannot write .*FLM_JAX_CACHE"):
        get(site, tmp_path / "file")


def test_a_disk_that_fills_up_on_the_way(tmp_path):
    full = Mock(write=Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(UserError, match="cannot write .*a.part: No space left .*FLM_JAX_CACHE to"):
        download._copy(Mock(read1=lambda _: b"data"), full, tmp_path / "a.part", Mock())


def test_a_bar_that_knows_where_it_is(site, tmp_path, monkeypatch):
    shown = []

    class Bar(tqdm.tqdm):
        def update(self, n=1):
            super().update(n)
            shown.append((self.desc, self.total, self.n))

        def close(self):
            shown.append("closed")
            super().close()

    monkeypatch.setattr(download.progress, "bar", lambda **o: Bar(file=io.StringIO(), **o))
    site.plan = ["cut", "ok"]
    fetch(Download(site.address, "file.bin", SHA), tmp_path, wait=0.001)
    updates = [one for one in shown if one != "closed"]
    assert shown[len(updates)] == "closed"  # tqdm closes it again when it is forgotten
    assert {update[:2] for update in updates} == {("downloading file.bin", len(CONTENT))}
    numbers = [update[2] for update in updates]
    assert numbers == sorted(numbers) and numbers[-1] == len(CONTENT)


@pytest.fixture
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-home"))
    for name in ("FLM_JAX_DATA", "FLM_JAX_TOKENIZERS", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


def test_a_corpus_is_fetched_when_asked(site, tmp_path, private_cache, monkeypatch):
    site.content = layouts.lm1b_archive(tmp_path).read_bytes()
    sha256 = hashlib.sha256(site.content).hexdigest()
    file = Download(site.address, f"{layouts.TOP}.tar.gz", sha256, len(site.content))
    monkeypatch.setattr(Lm1b, "downloads", (file,))
    assert len(Lm1b(download=True).source("train")) == 6
    assert len(Lm1b().source("train")) == 6  # it is there now
    assert site.ranges == [""]
    site.content = layouts.text8_zip(tmp_path).read_bytes()
    wrong = Download(site.address, "text8.zip", size=31_344_016)
    monkeypatch.setattr(Text8, "downloads", (wrong,))
    with pytest.raises(UserError, match="is not the published file: it has .* 31,344,016"):
        Text8(download=True)
    with pytest.raises(UserError, match="'text8' wants text8 or text8.zip, but none is in"):
        Text8()


def test_a_vocabulary_is_fetched_when_asked(site, private_cache, monkeypatch):
    site.content = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\n"
    sha256 = hashlib.sha256(site.content).hexdigest()
    file = Download(site.address, "vocab.txt", sha256, len(site.content))
    monkeypatch.setattr(bert, "_PUBLISHED", (file,))
    cache = str(private_cache)
    with pytest.raises(UserError, match="is not in .*set tokenizer.options.download=True"):
        bert.BertRecipe().build(cache_dir=cache)
    assert bert.BertRecipe(download=True).build(cache_dir=cache).vocab_size == 6
    assert bert.BertRecipe().build(cache_dir=cache).vocab_size == 6
    assert bert.Bert.read().vocab_size == 6  # the usual cache folder is the same one here
    damaged = Download(site.address, "vocab.txt", "1" * 64)
    monkeypatch.setattr(bert, "_PUBLISHED", (damaged,))
    other = str(private_cache / "other")
    with pytest.raises(UserError, match="is not the published file"):
        bert.BertRecipe(download=True).build(cache_dir=other)


def test_published_addresses_are_complete():
    from flm_jax.data.published import PUBLISHED
    from flm_jax.tokenizers import gpt2

    found = [file for corpus in PUBLISHED.values() for file in getattr(corpus, "downloads", ())]
    found += [*bert._PUBLISHED, *gpt2._PUBLISHED]
    assert len(found) == 9
    for file in found:
        assert file.address.startswith(("https://", "http://mattmahoney.net"))
        assert file.address.endswith(file.file)
        assert len(file.sha256) in (0, 64)
    assert download.Download("a", "b").sha256 == ""


def test_published_vocabularies_have_the_stated_checksums(shared):
    from flm_jax.tokenizers import gpt2

    for title, files in (("gpt2", gpt2._PUBLISHED), ("bert-base-uncased", bert._PUBLISHED)):
        for file in files:
            data = (shared / "data/tokenizers" / title / file.file).read_bytes()
            assert (hashlib.sha256(data).hexdigest(), len(data)) == (file.sha256, file.size)
