"""A file is there whole or not at all."""

import os
import pathlib
import socket
import stat
import subprocess
import sys
import threading

import pytest

from flm_jax.errors import UserError
from flm_jax.host import files


def test_text_and_bytes_in_new_folders(tmp_path):
    path = tmp_path / "a" / "b" / "c.txt"
    files.write_atomically(path, "é\ud800\n")
    assert path.read_bytes() == b"\xc3\xa9?\n"
    files.write_atomically(path, b"\xff")
    assert path.read_bytes() == b"\xff" and os.listdir(path.parent) == ["c.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(UserError, match=r"cannot write .*a\.txt: No space left .*free space"):
        files.write_atomically(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_kill_9_in_the_middle_leaves_the_old_file(tmp_path):
    program = (
        "import os, pathlib, signal, sys\nfrom flm_jax.host import files\n"
        "path = pathlib.Path(sys.argv[1])\nfiles.write_atomically(path, 'old')\n"
        "os.fsync = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_atomically(path, 'new')\n"
    )
    path = tmp_path / "a.txt"
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode == -9 and path.read_text() == "old"


def test_a_file_in_the_place_of_the_folder_gets_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*choose a folder that you can write to"):
        files.write_atomically(tmp_path / "file" / "a.txt", "new")


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "real.txt").write_text("old")
    for name, target in (("a", "disk/real.txt"), ("b", "a"), ("c", "disk/new.txt")):
        (tmp_path / name).symlink_to(target)
    files.write_atomically(tmp_path / "b", "new")
    files.write_atomically(tmp_path / "c", "made")  # it pointed to nothing yet
    assert all((tmp_path / name).is_symlink() for name in "abc")
    assert (tmp_path / "disk" / "real.txt").read_text() == "new"
    assert (tmp_path / "disk" / "new.txt").read_text() == "made"
    assert sorted(os.listdir(tmp_path / "disk")) == ["new.txt", "real.txt"]
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="cannot write .*loop: Too many levels of symbolic links"):
        files.write_atomically(tmp_path / "loop", "")


def test_a_pipe_and_a_device_are_written_into(tmp_path, monkeypatch):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to("pipe")
    received = []
    for path in (pipe, tmp_path / "link"):
        reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
        reader.start()
        files.check_writable(path)  # must not be what the reader hears of
        files.write_atomically(path, "text\n")
        reader.join()
    with monkeypatch.context() as without:
        without.setattr(os, "access", lambda *_: False)  # as for a user without the right
        with pytest.raises(UserError, match="cannot write .*pipe: Permission denied; free space"):
            files.check_writable(pipe)
    assert received == [b"text\n"] * 2 and stat.S_ISFIFO(pipe.stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]
    end, other = os.openpty()
    try:
        files.write_atomically(pathlib.Path(os.ttyname(other)), "text")
        assert os.read(end, 9) == b"text" and stat.S_ISCHR(os.stat(os.ttyname(other)).st_mode)
    finally:
        os.close(end), os.close(other)


def test_what_cannot_be_written_into_is_one_sentence(tmp_path):
    (tmp_path / "null").symlink_to("/dev/full")
    with pytest.raises(UserError, match="cannot write .*null: No space left"):
        files.write_atomically(tmp_path / "null", "x")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        for call in (files.check_writable, lambda path: files.write_atomically(path, "x")):
            with pytest.raises(UserError, match="cannot write .*s: No such device"):
                call(tmp_path / "s")
            with pytest.raises(UserError, match="cannot write .*: Is a directory"):
                call(tmp_path)


def test_standard_output_in_a_file_keeps_what_is_there(tmp_path):
    program = (
        "import pathlib, sys\nfrom flm_jax.host import files\nprint('before', flush=True)\n"
        "files.check_writable(pathlib.Path('/dev/stdout'))\n"
        "files.write_atomically(pathlib.Path('/dev/stdout'), 'samples\\n')\nprint('after')"
    )
    with open(tmp_path / "out", "ab") as out:
        subprocess.run([sys.executable, "-c", program], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "before\nsamples\nafter\n"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"before\nsamples\nafter\n"


@pytest.mark.parametrize("name", ["x" * 250, "file/a.txt", "file/a/b.txt"])
def test_what_cannot_be_written_is_known_before(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*choose a folder that you can write to"):
        files.check_writable(tmp_path / name)
    files.check_writable(tmp_path / "file")
    files.check_writable(tmp_path / "new" / "folder" / "a.txt")
    assert os.listdir(tmp_path) == ["file"]
