"""Commands in prose, scripts, docstrings and sentences: none is old, and their options exist."""

import ast
import json
import pathlib
import re
import subprocess

import pytest

from flm_jax import cli
from flm_jax.cli.options import options_of

ROOT = pathlib.Path(__file__).resolve().parents[2]
# CHANGELOG.md tells what commands were called; the tests try what must be refused.
LEFT_OUT = ("CHANGELOG.md", "tests/")
OLD = re.compile(
    r"-m flm_jax\.(?!main\b)\w+"
    r"|\bflm_jax\.(generate|evaluate|convert|benchmark|plan|parity|proof|soak|reproduce)\b"
    r"|\bflm_jax\.data\.(prepare|inspect|speed)\b"
)
NEW = re.compile(
    rf"(?:\bflm|-m flm_jax) ({'|'.join(sorted(cli.COMMANDS, key=len, reverse=True))})\b([^\n`]*)"
)


def texts() -> list[pathlib.Path]:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    names = listed.stdout.splitlines() or pytest.skip("no git here")
    kinds = (".md", ".py", ".sh", ".ipynb", ".cfg", ".toml", ".yaml", ".sbatch", "Makefile", "run")
    names = [name for name in names if name.endswith(kinds) and not name.startswith(LEFT_OUT)]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def plain(path: pathlib.Path) -> str:
    """What a person reads: a notebook's cells, not JSON; continued lines as one."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    return re.sub(r"\\\n\s*", "", text)


def old_commands(text: str, is_python: bool) -> list[str]:
    """Old commands in a text; modules that Python code imports are none."""
    imported = set()
    if is_python and OLD.search(text):
        nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Import | ast.ImportFrom)]
        imported = {number for n in nodes for number in range(n.lineno, (n.end_lineno or 0) + 1)}
    lines = enumerate(text.splitlines(), 1)
    return [line.strip() for number, line in lines if OLD.search(line) and number not in imported]


def unknown_options(text: str) -> list[str]:
    """Options that a command in the text does not have."""
    wrong = []
    for name, words in NEW.findall(text):
        known = set(options_of(cli.load(name).options)) | {"help"}
        for option in re.findall(r"(?<![\w-])--([a-z_]+)", words):
            if option not in known and option.removeprefix("no") not in known:
                wrong.append(f"flm {name} --{option}")
    return wrong


def test_there_are_no_old_commands():
    found = {p.relative_to(ROOT).as_posix(): old_commands(plain(p), p.suffix == ".py")
             for p in texts()}  # fmt: skip
    assert len(found) > 200
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_options_of_commands_exist():
    found = {p.relative_to(ROOT).as_posix(): unknown_options(plain(p)) for p in texts()}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_both_are_found():
    for text in ("python -m flm_jax.lab.plan", "see flm_jax.proof", "flm_jax.data.prepare DIR"):
        assert old_commands(text, False) == [text]
    assert old_commands("'run flm_jax.data.speed'", True) and not old_commands("flm_plan", True)
    assert old_commands("from flm_jax.data import prepare\nimport flm_jax.data.speed", True) == []
    text = "flm generate --step=1 --no_such=2 `--x` and python -m flm_jax benchmark data --json"
    assert unknown_options(text) == ["flm generate --no_such", "flm benchmark data --json"]
