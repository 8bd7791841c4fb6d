"""A file is there whole or not at all."""

import os
import subprocess
import sys

import pytest

from flm_jax import files
from flm_jax.errors import UserError


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
        "import os, pathlib, signal, sys\nfrom flm_jax import files\n"
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
