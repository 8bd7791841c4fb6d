"""How a command of ours is typed here: for the next steps that tools print, ready to be pasted."""

import os
import pathlib
import shlex
import shutil
import sys


def pasteable(*words: str) -> str:
    """``flm`` with these words, quoted for a shell: ``flm generate --checkpoint='my run'``.

    Where the installed script of the running interpreter is not the one on PATH it comes with its
    folder (``.venv/bin/flm``), and where there is none it is ``PYTHON -m flm_jax``.
    """
    return " ".join([_program(), *map(_quoted, words)])


def this() -> str:
    """The command of this process, ready to be pasted."""
    program, *words = sys.argv
    path = pathlib.Path(program)
    if path.parts[-2:] == ("flm_jax", "main.py"):  # python -m flm_jax.main
        return pasteable("train", *words)
    if path.stem == "flm" or path.parts[-2:] == ("flm_jax", "__main__.py"):
        return pasteable(*words)
    return shlex.join(sys.argv)


def _program() -> str:
    script = pathlib.Path(sys.executable).with_name("flm.exe" if os.name == "nt" else "flm")
    if not script.is_file():
        return f"{_typed(pathlib.Path(sys.executable))} -m flm_jax"
    on_path = shutil.which("flm")
    return "flm" if on_path and os.path.samefile(on_path, script) else _typed(script)


def _typed(path: pathlib.Path) -> str:
    """A path as one would type it in this folder."""
    here = pathlib.Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def _quoted(word: str) -> str:
    name, equals, value = word.partition("=")
    if word.startswith("--") and equals:
        return f"{shlex.quote(name)}={shlex.quote(value)}"
    return shlex.quote(word)
