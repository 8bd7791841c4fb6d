"""`make release`: what it refuses and writes, and that a failure leaves all as it was.

Building and installing take a network and minutes; here they are stood in for, in a repository of
three files.
"""

import importlib.util
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SETUP = "[metadata]\nname = flm_jax\nversion = 0.1.0\n\n[options]\npython_requires = >=3.11\n"
CITATION = "cff-version: 1.2.0\nversion: 0.1.0\nauthors: []\n"
CHANGELOG = "# Changelog\n\n## Unreleased\n\n### Added\n\n- A thing.\n"

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("release", ROOT / ".ci/release.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def git(folder, *words):
    named = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    command = ["git", *named, *words]
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    for kind in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{kind}_NAME", "a")
        monkeypatch.setenv(f"GIT_{kind}_EMAIL", "a@b.c")
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name, text in contents(SETUP, CITATION, CHANGELOG).items():
        (folder / name).write_text(text)
    (folder / ".gitignore").write_text("dist/\n")
    git(folder, "init", "--quiet")
    git(folder, "add", "-A")
    git(folder, "commit", "--quiet", "-m", "First")
    return folder


def contents(*texts):
    return dict(zip(("setup.cfg", "CITATION.cff", "CHANGELOG.md"), texts, strict=True))


def found(folder):
    return {name: (folder / name).read_text() for name in contents(*"abc")}


@pytest.fixture
def stood_in(tool, monkeypatch):
    """Building makes two files, trying out does nothing; both say with what they were called."""
    calls = []

    def build(root, version, folder):
        calls.append(("build", version, found(root)))
        made = [folder / f"flm_jax-{version}.tar.gz", folder / f"flm_jax-{version}-none-any.whl"]
        for path in made:
            path.write_text("x")
        return made

    def try_out(wheel, version, folder):
        calls.append(("try_out", version, wheel.suffix))

    monkeypatch.setattr(tool, "build", build)
    monkeypatch.setattr(tool, "try_out", try_out)
    return calls


def test_the_three_files_have_the_version_and_nothing_is_committed(
    tool, checkout, stood_in, capsys
):
    tool.release(checkout, "0.2.0")
    now = found(checkout)
    assert now["setup.cfg"] == SETUP.replace("0.1.0", "0.2.0")
    date = now["CITATION.cff"].partition("date-released: ")[2].splitlines()[0]
    assert now["CITATION.cff"] == CITATION.replace("0.1.0", f"0.2.0\ndate-released: {date}")
    assert now["CHANGELOG.md"] == CHANGELOG.replace(
        "## Unreleased\n", f"## Unreleased\n\n## 0.2.0 ({date})\n"
    )
    assert [call[0] for call in stood_in] == ["build", "try_out"]
    assert stood_in[0][2] == now and stood_in[1][2] == ".whl"  # built of what is released
    assert {path.name for path in (checkout / "dist").iterdir()} == {
        "flm_jax-0.2.0.tar.gz",
        "flm_jax-0.2.0-none-any.whl",
    }
    assert len(git(checkout, "log", "--format=%s").splitlines()) == 1
    said = capsys.readouterr().out
    assert "git tag -a v0.2.0" in said and "twine upload dist/flm_jax-0.2.0.tar.gz" in said
    assert "git commit" in said


def test_with_the_flag_it_commits_and_the_next_one_needs_entries(tool, checkout, stood_in, capsys):
    tool.release(checkout, "0.1.0", commit=True)  # the first release may keep its number
    assert git(checkout, "log", "-1", "--format=%s") == "Release 0.1.0"
    assert git(checkout, "status", "--porcelain") == ""
    assert "git commit" not in capsys.readouterr().out
    with pytest.raises(tool.Refused, match="no entries under '## Unreleased'"):
        tool.release(checkout, "0.2.0")
    with pytest.raises(tool.Refused, match="has a heading for 0.1.0 already"):
        tool.release(checkout, "0.1.0")
    text = (checkout / "CHANGELOG.md").read_text()
    (checkout / "CHANGELOG.md").write_text(text.replace("leased\n", "leased\n\n- Another.\n", 1))
    git(checkout, "commit", "--quiet", "-am", "Another")
    tool.release(checkout, "0.1.1", commit=True)
    assert found(checkout)["CITATION.cff"].count("date-released") == 1


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        ("1.2", "VERSION=1.2 is not three numbers"),
        ("v1.2.3", "VERSION=v1.2.3 is not three numbers"),
        ("0.0.9", "is below 0.1.0"),
        ("0.3.0", "there is a tag v0.3.0 already"),
    ],
)
def test_versions_that_are_refused(tool, checkout, stood_in, version, sentence):
    git(checkout, "tag", "v0.3.0")
    with pytest.raises(tool.Refused, match=sentence):
        tool.release(checkout, version)
    assert found(checkout) == contents(SETUP, CITATION, CHANGELOG) and not stood_in


@pytest.mark.parametrize("name", ["CHANGELOG.md", "new.txt"])
def test_what_is_not_committed_is_refused(tool, checkout, stood_in, name):
    with (checkout / name).open("a") as file:
        file.write("\n- More.\n")
    with pytest.raises(tool.Refused, match=f"1 files are not committed, the first is {name}"):
        tool.release(checkout, "0.2.0")
    assert not stood_in


@pytest.mark.parametrize(
    ("name", "before", "after", "sentence"),
    [
        ("CHANGELOG.md", "- A thing.\n", "", "no entries under"),
        ("CHANGELOG.md", "## Unreleased", "## Later", "has 0 lines '## Unreleased'"),
        ("setup.cfg", "version = 0.1.0", "version = attr: a.b", "setup.cfg has 0 lines"),
        ("CITATION.cff", "version: 0.1.0\n", "", "CITATION.cff has 0 lines"),
    ],
)
def test_files_that_are_not_as_they_should_be(
    tool, checkout, stood_in, name, before, after, sentence
):
    path = checkout / name
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    if name == "CITATION.cff":
        path.write_text("authors: []\n")
    git(checkout, "commit", "--quiet", "-am", "Wrong")
    as_it_was = found(checkout)
    with pytest.raises(tool.Refused, match=sentence):
        tool.release(checkout, "0.2.0")
    assert found(checkout) == as_it_was and not stood_in


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_failure_leaves_the_checkout_as_it_was(tool, checkout, stood_in, monkeypatch, error):
    def fails(wheel, version, folder):
        raise error("no")

    monkeypatch.setattr(tool, "try_out", fails)
    with pytest.raises(error):
        tool.release(checkout, "0.2.0")
    assert found(checkout) == contents(SETUP, CITATION, CHANGELOG)
    assert git(checkout, "status", "--porcelain") == "" and not (checkout / "dist").exists()


def test_a_command_that_fails_is_told_with_what_it_said(tool, tmp_path):
    with pytest.raises(tool.Refused, match="(?s)ended with 1; it said:.*not a git repository"):
        tool.run("sh", "-c", "echo not a git repository >&2; exit 1", cwd=tmp_path)


def test_mistakes_end_with_a_sentence_and_2(tool, checkout, stood_in, monkeypatch, capsys):
    monkeypatch.setattr(tool, "ROOT", checkout)
    assert tool.main(["1"]) == 2
    assert capsys.readouterr().err.startswith("error: VERSION=1 is not three numbers")
    assert tool.main(["0.2.0"]) == 0


def test_the_files_of_this_repository_can_be_released(tool):
    texts = tool.edits(ROOT, "99.0.0", "2026-12-01")
    assert {path.name for path in texts} == set(contents(*"abc"))
    for path, text in texts.items():
        assert "99.0.0" in text and text != path.read_text()
    assert tool.entries((ROOT / "CHANGELOG.md").read_text()) is not None
