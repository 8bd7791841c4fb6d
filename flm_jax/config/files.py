"""From the words after --config= to a file, and from a config file to what its get_config gives."""

import contextlib
import difflib
import functools
import importlib.machinery
import importlib.util
import inspect
import pathlib
import pkgutil
import re
import sys
import traceback
import types
from collections.abc import Iterator
from typing import Any

from flm_jax.errors import UserError


def find(words: str) -> tuple[pathlib.Path, str]:
    """The file and the stage of "FILE" or "FILE:STAGE"; no stage is "".

    FILE is a path, or the name of a config: quickstart means configs/quickstart.py. What is not
    here is looked for among our own configs. A colon may be part of the path.

    Raises UserError if there is no such file.
    """
    colons = [at for at, character in enumerate(words) if character == ":"]
    starts = [words[:end] for end in (len(words), *reversed(colons))]
    for path in starts:
        if file := _existing(path):
            return file, words[len(path) + 1 :]
    for path in filter(None, starts):
        if pathlib.Path(path).is_dir():
            raise UserError(_folder(path))
    path, colon, stage = words.rpartition(":")
    raise UserError(_missing(path if colon and not re.search(r"[/\\]", stage) else words))


def run(file: pathlib.Path, stage: str) -> Any:
    """Runs a config file and calls its get_config; every failure of it is one sentence.

    Raises UserError that names the line of the file.
    """
    try:
        with _configs_of_ours():
            module = types.ModuleType("flm_jax_user_config")
            module.__file__ = str(file)
            sys.modules[module.__name__] = module  # dataclasses look their module up there
            exec(compile(file.read_bytes(), str(file), "exec"), module.__dict__)
            get_config = module.__dict__.get("get_config")
            if not callable(get_config):
                raise UserError(
                    f"{file}: a config file must define get_config(); see configs/common.py"
                )
            if stage and not inspect.signature(get_config).parameters:
                raise UserError(
                    f"{file}: get_config() takes no argument, but got {stage!r} after ':'"
                )
            return get_config(*([stage] if stage else []))
    except UserError:
        raise
    except Exception as error:
        raise UserError(_failed(file, error)) from error


@functools.cache
def _our_folder() -> pathlib.Path:
    """Where the configs lie that come with the code: in a clone beside it, in a wheel within it."""
    return pathlib.Path(pkgutil.resolve_name("flm_jax.configs").__path__[0])


def _existing(path: str) -> pathlib.Path | None:
    file = pathlib.Path(path)
    if file.is_file():
        return file
    if re.fullmatch(r"\w+", path):
        file = pathlib.Path("configs", f"{path}.py")
    ours = [_our_folder() / file.name] if file.parent == pathlib.Path("configs") else []
    return next((place for place in (file, *ours) if place.is_file()), None)


@contextlib.contextmanager
def _configs_of_ours() -> Iterator[None]:
    """Inside it `from configs import common` means ours, unless a package of theirs has that name.

    A folder configs/ without an __init__.py, in which users keep their files, is no such package;
    what it holds is found first.
    """
    found = importlib.util.find_spec("configs")
    if found is not None and found.origin is not None:
        yield
        return
    folders = [*(found.submodule_search_locations or () if found else ()), str(_our_folder())]
    package = importlib.machinery.ModuleSpec("configs", None, is_package=True)
    package.submodule_search_locations = folders
    before = {name: module for name, module in sys.modules.items() if _is_configs(name)}
    sys.modules["configs"] = importlib.util.module_from_spec(package)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if _is_configs(name)]:
            del sys.modules[name]
        sys.modules.update(before)


def _is_configs(name: str) -> bool:
    return name.partition(".")[0] == "configs"


def _folder(path: str) -> str:
    if pathlib.Path(path, "config.json").is_file():
        return f"config file {path} is the workdir of a run; its config is {path}/config.json"
    return f"config file {path} is a folder; give a .py file in it"


def _missing(path: str) -> str:
    folders = pathlib.Path("configs"), _our_folder()
    stems = [file.stem for folder in folders for file in sorted(folder.glob("*.py"))]
    names = {stem: f"configs/{stem}.py" for stem in stems if stem not in ("common", "__init__")}
    near = difflib.get_close_matches(pathlib.Path(path).stem, names, n=1, cutoff=0.55)
    what = f"config file {path} does not exist" if path else "no config file is named"
    if near:
        return f"{what}; did you mean {names[near[0]]}?"
    return f"{what}; there are: {', '.join(names.values())}"


def _failed(file: pathlib.Path, error: Exception) -> str:
    if isinstance(error, SyntaxError):
        line, place = error.lineno, error.filename or file
    else:
        frames = traceback.extract_tb(error.__traceback__)
        frames = [f for f in frames if f.filename == str(file)] or list(frames)
        line, place = frames[-1].lineno, frames[-1].filename
    what = error.msg if isinstance(error, SyntaxError) else str(error)
    remedy = ""
    if isinstance(error, ImportError) and _is_configs(error.name or ""):
        remedy = "; the package of ours is flm_jax.configs (from flm_jax.configs import common)"
    return (
        f"config file {place}, line {line}: {type(error).__name__}: {' '.join(what.split())}"
        f"{remedy}"
    )
