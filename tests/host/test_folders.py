"""Where caches lie, with and without a home, and what a user without one reads."""

import pathlib
import pwd

import pytest
from recipes import make_tokenizer

import flm_jax
from flm_jax.cli import exits
from flm_jax.data import base
from flm_jax.data.published import base as published
from flm_jax.errors import UserError
from flm_jax.host import folders
from flm_jax.tokenizers import vocabulary_files

VARIABLES = ("FLM_JAX_CACHE", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE",
             "FLM_JAX_TOKENIZERS")  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch, tmp_path):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def no_home(monkeypatch):
    """As in a container that runs under a number without a name."""

    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_the_cache_is_chosen_or_named_or_the_users(monkeypatch, tmp_path):
    home = tmp_path / "home"
    assert base.cache_folder() == home / ".cache/flm_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/paths/do/not/count")
    assert base.cache_folder() == home / ".cache/flm_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert str(base.cache_folder()) == "/xdg/flm_jax"
    assert str(folders.hugging_face("HF_HUB_CACHE", "hub")) == "/xdg/huggingface/hub"
    places = map(str, published.hub_folders(["a/b"]))
    assert "/xdg/huggingface/datasets/a___b" in places
    monkeypatch.setenv("HF_HOME", "~/hf")
    assert folders.hugging_face("HF_HUB_CACHE", "hub") == home / "hf/hub"
    monkeypatch.setenv("FLM_JAX_CACHE", "~/own")
    assert base.cache_folder() == home / "own"
    assert str(base.cache_folder("/given")) == "/given"


def test_a_vocabulary_is_found_in_the_cache_that_xdg_names(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for place in ("flm_jax/tokenizers/t", "huggingface/hub/models--some--t/snapshots/0"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "vocab.txt").write_text(place)
        found = vocabulary_files.find("t", "", (("vocab.txt",),), ("some/t",))
        assert found == {"vocab.txt": place.encode()}


def test_without_a_home_what_needs_one_says_so(no_home, tmp_path, monkeypatch):
    for act in (
        base.cache_folder,
        lambda: base.cache_folder("~/here"),
        lambda: flm_jax.load("~/run"),
        lambda: vocabulary_files.find("t", "", (("vocab.txt",),), ("some/t",)),
        lambda: make_tokenizer({"name": "gpt2", "options": {}}, []),
    ):
        with pytest.raises(UserError, match="home folder, but there is none: .*FLM_JAX_CACHE=FOLD"):
            act()
    with pytest.raises(UserError, match="~no-such-user is in a home folder"):
        folders.expanded("~no-such-user")
    # What does not need one works.
    (tmp_path / "t").mkdir()
    (tmp_path / "t/vocab.txt").write_text("here")
    wanted = (("vocab.txt",),), ("some/t",)
    assert vocabulary_files.find("t", str(tmp_path / "t"), *wanted) == {"vocab.txt": b"here"}
    monkeypatch.setenv("FLM_JAX_TOKENIZERS", str(tmp_path))
    assert vocabulary_files.find("t", "", *wanted) == {"vocab.txt": b"here"}
    assert list(published.hub_folders(["a/b"])) == []
    monkeypatch.setenv("FLM_JAX_CACHE", str(tmp_path))
    assert base.cache_folder() == tmp_path


def test_a_command_says_it_in_one_sentence(no_home, capsys):
    def work():
        pathlib.Path("~/x").expanduser()

    with pytest.raises(SystemExit) as ended:
        exits.exit_with(work)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ~ is in a home folder, but there is none")
    assert len(said.splitlines()) == 1
