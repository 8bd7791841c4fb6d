"""Which files a path, folder, glob or list takes, and that nothing is left out without a word."""

import os
import pathlib

import pytest

from flm_jax import errors
from flm_jax.data import text_files
from flm_jax.data.published import PUBLISHED


def put(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}\nmore")


def taken(path):
    """Names of the files, found without reading any of them."""
    corpus = text_files.TextFiles(path)
    return [str(file.relative_to(pathlib.Path(file.anchor))) for file in corpus._files["train"]]


def below(folder, path):
    root = str(folder.relative_to(folder.anchor))
    return [name.removeprefix(f"{root}/") for name in taken(path)]


def test_a_folder_takes_every_case_and_tells_what_it_leaves_out(tmp_path, caplog):
    put(tmp_path, "A.TXT", "b.txt", "deep/c.JsonL", "d.Txt.Gz", "meta.json")
    put(tmp_path, ".ipynb_checkpoints/b.txt", "deep/._c.txt", "notes.md", "x.csv", "y.py", "z.py")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    put(tmp_path.parent / "beside", "e.txt")
    (tmp_path / "linked").symlink_to(tmp_path.parent / "beside")
    os.mkfifo(tmp_path / "pipe.txt")
    assert below(tmp_path, str(tmp_path)) == ["A.TXT", "b.txt", "d.Txt.Gz", "deep/c.JsonL"]
    assert f"{tmp_path}: 4 files are taken; left out: " in caplog.text
    for part in (
        "2 hidden (.ipynb_checkpoints, deep/._c.txt)",
        "1 link to a folder (linked)",
        "1 dangling link (gone.txt)",
        "1 pipe, socket or device (pipe.txt)",
        "5 with another ending (meta.json, notes.md, x.csv, ...)",
    ):
        assert part in caplog.text


def test_nothing_is_said_where_nothing_is_left_out(tmp_path, caplog):
    put(tmp_path, "a.txt", "b/c.txt")
    for path in (str(tmp_path), f"{tmp_path}/**/*.txt", f"{tmp_path}/**", [f"{tmp_path}/a.txt"]):
        assert taken(path)
    assert not caplog.text


def test_a_folder_of_nothing_but_json_is_taken(tmp_path):
    put(tmp_path, "b.json.gz", "a.json")
    assert below(tmp_path, str(tmp_path)) == ["a.json", "b.json.gz"]


def test_globs_tell_what_they_leave_out(tmp_path, caplog):
    put(tmp_path, "a.txt", "B.TXT", "sub.txt/c.txt")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    assert below(tmp_path, f"{tmp_path}/*.txt") == ["a.txt"]
    for part in (
        "1 files are taken",
        "1 folder (sub.txt)",
        "1 dangling link (gone.txt)",
        "1 pipe, socket or device (pipe.txt)",
        "1 with an ending in another case (B.TXT)",
    ):
        assert part in caplog.text


def test_marks_of_globs_and_commas_in_names(tmp_path):
    put(tmp_path, "a,b/x.txt", "run[1]/y.txt", "run[1]/z[2].txt", "run1/w.txt")
    assert below(tmp_path, f"{tmp_path}/a,b/*.txt") == ["a,b/x.txt"]
    assert below(tmp_path, f"{tmp_path}/a,b") == ["a,b/x.txt"]
    assert below(tmp_path, f"{tmp_path}/run[1]") == ["run[1]/y.txt", "run[1]/z[2].txt"]
    assert below(tmp_path, f"{tmp_path}/run[1]/y*") == ["run[1]/y.txt"]
    assert below(tmp_path, f"{tmp_path}/run[1]/z[2].txt") == ["run[1]/z[2].txt"]
    assert below(tmp_path, f"{tmp_path}/run[0-9]/*") == ["run1/w.txt"]
    both = f"{tmp_path}/run1/*.txt, {tmp_path}/run[1]"
    assert below(tmp_path, both) == ["run1/w.txt", "run[1]/y.txt", "run[1]/z[2].txt"]
    with pytest.raises(errors.UserError, match=r"no file .*a \(2 entries, for commas separate"):
        taken(f"{tmp_path}/a,c/x.txt")
    with pytest.raises(errors.UserError, match="there is no file"):
        taken(",".join(f"{tmp_path}/none{i}.txt" for i in range(500)))  # too long for a name


def test_names_without_files_say_what_was_there(tmp_path):
    put(tmp_path, "notes.md", ".hidden/a.txt", "c.md")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    for path, sentence in (
        (tmp_path, r"holds no \.txt.* files; left out: .*1 hidden .*another ending"),
        (tmp_path / "gone.txt", "is a dangling link, not a regular file"),
        (tmp_path / "pipe", "is a pipe, socket or device, not a regular file.*to a file first"),
        ("/dev/null", "/dev/null is a pipe, socket or device"),
        (f"{tmp_path}/g*.txt", "no file matches .* but left out: 1 dangling link"),
    ):
        with pytest.raises(errors.UserError, match=sentence):
            text_files.TextFiles(str(path))


@pytest.mark.parametrize("path", [" , ", [""], ["a.txt", " "], " "])
def test_an_empty_entry_is_not_the_current_folder(tmp_path, monkeypatch, path):
    put(tmp_path, "a.txt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.UserError, match="names no file, or has an empty entry"):
        text_files.TextFiles(path)


def test_a_folder_that_cannot_be_read_is_told(tmp_path, caplog, monkeypatch):
    put(tmp_path, "a.txt", "locked/b.txt")
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert below(tmp_path, str(tmp_path)) == ["a.txt"]
    assert "1 unreadable" in caplog.text and "locked" in caplog.text


def test_published_corpora_do_not_read_what_is_hidden(tmp_path):
    put(tmp_path, *(f"{i}.txt" for i in range(4)), ".ipynb_checkpoints/0.txt", "a/._5.txt")
    corpus = PUBLISHED["openwebtext"](str(tmp_path), valid_documents=1)
    assert corpus.describe()["documents"] == {"train": 3, "valid": 1}
