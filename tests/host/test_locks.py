"""One lock for workdirs, downloads and prepared rows; file systems without are warned about."""

import errno
import fcntl
import os
import sys

import pytest

from flm_jax.data import shards
from flm_jax.errors import UserError
from flm_jax.host import download, locks
from flm_jax.training import workdir as workdir_lib


def test_one_holds_it_until_it_is_closed(tmp_path):
    with open(tmp_path / "f", "a") as one, open(tmp_path / "f", "a") as two:
        assert locks.take(one, "") and not locks.take(two, "")
        one.close()
        assert locks.take(two, "", wait=True)


@pytest.fixture(params=["ENOLCK", "EOPNOTSUPP", "ENOSYS", "Windows"])
def without_locks(request, monkeypatch):
    """A file system without locks; the reason that it gives."""
    if request.param == "Windows":
        monkeypatch.setitem(sys.modules, "fcntl", None)
        return "import of fcntl halted"
    number = getattr(errno, request.param)

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    return os.strerror(number)


def test_without_locks_all_three_warn_and_go_on(tmp_path, monkeypatch, caplog, without_locks):
    with workdir_lib.locked(tmp_path / "run"):
        assert f"run/.lock cannot be locked ({without_locks}" in caplog.text
        assert f"let no other command train in {tmp_path}/run" in caplog.text
    with shards.lock(tmp_path / "rows.lock", "preparing"):
        assert f"rows.lock cannot be locked ({without_locks}" in caplog.text
        assert "let no two processes prepare the same text" in caplog.text
    monkeypatch.setattr(download, "_fill", lambda download, file, *_: file.write(b"content"))
    monkeypatch.setattr(download, "_check", lambda *_: None)
    file = download.Download("http://x/file", "file", "", 7)
    assert download.fetch(file, tmp_path).read_bytes() == b"content"
    assert "file.part cannot be locked" in caplog.text


def test_a_locked_workdir_is_one_sentence(tmp_path):
    with workdir_lib.locked(tmp_path):
        with pytest.raises(UserError, match="another process is training in .*wait for it"):
            workdir_lib.locked(tmp_path).__enter__()
    with workdir_lib.locked(tmp_path):
        pass
