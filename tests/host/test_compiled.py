"""Programs of a command are kept in the user's cache folder, and nowhere else."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from flm_jax.errors import UserError
from flm_jax.host import compiled, folders


@pytest.fixture
def no_folder():
    """Without the folder that the tests' own programs are kept in."""
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def compile_something(number: float) -> None:
    jax.jit(lambda x: x * number - 1.0)(jnp.float32(2.0)).block_until_ready()


def test_small_programs_are_kept_for_the_user(no_folder, tmp_path, monkeypatch):
    monkeypatch.setenv(folders.CACHE_VARIABLE, str(tmp_path / "cache"))
    threshold = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    with compiled.kept_for_user():
        compile_something(3.5)
    kept = [path for path in (tmp_path / "cache" / "compiled").rglob("*") if path.is_file()]
    assert kept
    assert jax.config.values["jax_compilation_cache_dir"] is None
    assert jax.config.values["jax_persistent_cache_min_compile_time_secs"] == threshold
    compile_something(4.5)
    assert len(kept) == len([path for path in (tmp_path / "cache").rglob("*") if path.is_file()])


def test_a_folder_that_jax_was_told_of_stays(no_folder, tmp_path, monkeypatch):
    monkeypatch.setenv(folders.CACHE_VARIABLE, str(tmp_path / "cache"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    with compiled.kept_for_user():
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "own")


@pytest.mark.parametrize("why", ["no home", "a file is there"])
def test_without_a_place_nothing_is_kept(why, no_folder, tmp_path, monkeypatch):
    if why == "no home":
        monkeypatch.setattr(folders, "cache", no_home)
    else:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv(folders.CACHE_VARIABLE, str(tmp_path / "file"))
    with compiled.kept_for_user():
        assert jax.config.values["jax_compilation_cache_dir"] is None


def no_home() -> pathlib.Path:
    raise UserError(folders.no_home())
