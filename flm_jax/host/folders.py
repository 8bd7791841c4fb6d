"""Where things lie that have no place in a command: the folders of caches.

A user may have no home (no HOME, and a number that the system has no name for, as in many
containers): then what needs one says so, and everything else works.
"""

import os
import pathlib

from flm_jax.errors import UserError

CACHE_VARIABLE = "FLM_JAX_CACHE"


def expanded(path: str | os.PathLike) -> pathlib.Path:
    """The path with ~ replaced by a home folder.

    Raises UserError if there is no such home.
    """
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(no_home(str(path))) from error


def local(option: str, given: str) -> pathlib.Path:
    """The folder that an option names; UserError if it is none of this machine."""
    if "://" in given:
        raise UserError(f"{option}={given} is not a local or mounted folder; choose one")
    return expanded(given)


def no_home(path: str = "~") -> str:
    """The sentence about a path that begins with a home folder, where there is none."""
    return (
        f"{path} is in a home folder, but there is none: HOME is not set, or the system does not "
        "know this user; set HOME, or give a path without ~ (for downloads and packed rows: "
        f"{CACHE_VARIABLE}=FOLDER or --config.data.cache_dir=FOLDER)"
    )


def caches() -> pathlib.Path:
    """$XDG_CACHE_HOME, else ~/.cache; UserError without a home. A relative one does not count."""
    chosen = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    return chosen if chosen.is_absolute() else expanded("~/.cache")


def cache(chosen: str | os.PathLike = "") -> pathlib.Path:
    """Our cache: ``chosen``, else $FLM_JAX_CACHE, else flm_jax in the user's `caches`."""
    given = str(chosen) or os.environ.get(CACHE_VARIABLE)
    return expanded(given) if given else caches() / "flm_jax"


def hugging_face(variable: str, part: str) -> pathlib.Path | None:
    """A cache of the Hugging Face libraries, where these have it; None without a home.

    Args:
      variable: that names it: HF_HUB_CACHE, HF_DATASETS_CACHE.
      part: its folder, "hub" or "datasets", in $HF_HOME or huggingface in the user's `caches`.
    """
    try:
        if given := os.environ.get(variable):
            return expanded(given)
        home = os.environ.get("HF_HOME")
        return (expanded(home) if home else caches() / "huggingface") / part
    except UserError:
        return None
