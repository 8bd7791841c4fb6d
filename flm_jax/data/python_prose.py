"""English prose that comes with Python: its reference topics and the docstrings of its library.

Nothing is imported that is not a C module or already safe: the library's sources are parsed.
"""

import ast
import functools
import hashlib
import importlib
import os
import pathlib
import re
import sys
import sysconfig
import textwrap
from collections.abc import Iterator

from flm_jax import errors
from flm_jax.data import base
from flm_jax.host import progress

_SKIPPED_FOLDERS = {
    "__pycache__",
    "dist-packages",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}
# C modules: their docstrings exist only at run time, and importing them does nothing else.
_C_MODULES = (
    *("_bisect", "_codecs", "_collections", "_csv", "_datetime", "_decimal", "_functools"),
    *("_hashlib", "_heapq", "_io", "_json", "_operator", "_pickle", "_random", "_socket", "_sre"),
    *("_ssl", "_struct", "_thread", "_weakref", "array", "binascii", "builtins", "cmath", "errno"),
    *("fcntl", "gc", "itertools", "marshal", "math", "mmap", "posix", "pwd", "resource", "select"),
    *("signal", "sys", "termios", "time", "unicodedata", "zlib"),
)

_RULES = "1"  # raise it when the cleaning below changes, so that caches notice
_ROLE = re.compile(r":[a-z][a-z:]*:`~?([^`<]*?)(?:\s*<[^`]*>)?`")
_HYPHEN = re.compile(r"(?<=\w)-\n(?=\w)")  # "non-" at the end of a line, "numeric" on the next
_MARKS = (
    (re.compile(r"`+_*([^`]+?)`+_{0,2}"), r"\1"),
    (re.compile(r"(?<![\w*])(\*{1,2})(?=\S)([^*]+?)(?<=\S)\1(?![\w*])"), r"\2"),
    (re.compile(r"\s*\[\d+\]_?"), ""),
    (re.compile(r"\s+"), " "),
)
_BULLET = re.compile(r"^\s*(?:[*\-+•]|\(?\d{1,2}[.)])\s+")
_RULER = re.compile(r"^\s*([=\-~*^#+_])\1{2,}[\s=\-~*^#+_]*$")
_CODE = re.compile(r">>>|^\s*\.\.\s|::=|^\s*:\w[^:]*:\s|->|^\s*[|+][-|=+\s]|[{};]\s*$|\t")
_SIGNATURE = re.compile(r"^[\w.]+\(.*\)\s*(?:->.*|:.*)?$")
_PROSE = re.compile(r"[A-Za-z ,.;:'\"()\-]")


class PythonProse(base.MemoryCorpus):
    """One document per docstring or reference topic: its paragraphs of prose, one per line.

    Modules, not documents, are dealt to the 90/5/5 split; a paragraph that occurs several times is
    kept where it occurs first. The text varies with the version of Python.
    """

    name = "python_prose"
    kind = "English paragraphs of Python's reference topics and standard-library docstrings"
    licence = "(c) Python Software Foundation, PSF License Version 2"

    def read(self) -> dict[str, list[str]]:
        splits = _documents()
        if not all(splits.values()):
            raise errors.UserError(
                "data set 'python_prose' needs the sources of Python's standard library, but "
                f"{_root()} holds none; use a complete Python installation"
            )
        return splits

    def fingerprint(self, split: str) -> str:
        """From the version of Python and the sizes of its sources: reading them takes seconds."""
        base.check_split(self, split)
        sizes = [f"{path.relative_to(_root())} {path.stat().st_size}" for path in _sources()]
        facts = [_RULES, split, sys.version, *sizes]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()


@functools.cache
def _documents() -> dict[str, list[str]]:
    seen: set[str] = set()
    items = []
    for module, text in _texts():
        fresh = [p for p in dict.fromkeys(paragraphs(text)) if p not in seen]
        seen.update(fresh)
        if fresh:
            items.append((module, "\n".join(fresh)))
    return base.split_by_hash(items)


def _texts() -> Iterator[tuple[str, str]]:
    """Pairs of module and raw text: topics, then sources by name, then C modules."""
    from pydoc_data import topics

    for topic, text in sorted(topics.topics.items()):
        yield f"topic {topic}", text
    for path in progress.bar(_sources(), desc="reading docstrings", unit="file", delay=1):
        module = path.relative_to(_root()).with_suffix("").as_posix()
        for text in _docstrings(path):
            yield module, text
    for module in _C_MODULES:
        for text in _runtime_docstrings(module):
            yield module, text


def _root() -> pathlib.Path:
    return pathlib.Path(sysconfig.get_path("stdlib"))


def _sources() -> list[pathlib.Path]:
    """The sources of the standard library, sorted; tests and what is not a library omitted."""
    paths = []
    for folder, folders, files in os.walk(_root()):
        folders[:] = [
            f for f in folders if f not in _SKIPPED_FOLDERS and not f.startswith("config-")
        ]
        paths += [pathlib.Path(folder, f) for f in files if f.endswith(".py")]
    return sorted(paths)


def _docstrings(path: pathlib.Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):  # templates with placeholders are not valid Python
        return
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield text


def _runtime_docstrings(name: str) -> Iterator[str]:
    try:
        module = importlib.import_module(name)
    except ImportError:  # this platform has none
        return
    for _, thing in sorted(vars(module).items()):
        yield from _docs_of(thing)
        if isinstance(thing, type):
            for _, member in sorted(vars(thing).items()):
                yield from _docs_of(member)


def _docs_of(thing: object) -> Iterator[str]:
    text = getattr(thing, "__doc__", None) if callable(thing) else None
    if isinstance(text, str):
        first, _, rest = text.partition("\n")
        yield f"{first.strip()}\n{textwrap.dedent(rest)}"


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of prose in a docstring or topic, each on one line, without markup.

    Code, signatures, tables, headings, field lists and directives are omitted. A paragraph is
    prose if it has at least five words, starts like a sentence and ends like one.
    """
    for block in re.split(r"\n\s*\n", text):
        for lines in _items(block.strip("\n").split("\n")):
            plain = _plain(lines)
            if plain and _is_prose(plain):
                yield plain


def _items(lines: list[str]) -> Iterator[list[str]]:
    """The lines of a block, cut where a bullet starts; a block with code or a ruler gives none."""
    if any(_RULER.match(line) or _CODE.search(line) for line in lines):
        return
    item: list[str] = []
    for line in lines:
        if _BULLET.match(line) and item:
            yield item
            item = []
        item.append(_BULLET.sub("", line, count=1))
    yield item


def _plain(lines: list[str]) -> str:
    if _SIGNATURE.match(lines[0].strip()):
        lines = lines[1:]
    joined = _HYPHEN.sub("-", "\n".join(line.strip() for line in lines))
    text = _ROLE.sub(r"\1", joined.replace("\n", " "))
    for pattern, replacement in _MARKS:
        text = pattern.sub(replacement, text)
    return text.strip().removesuffix("::")


def _is_prose(text: str) -> bool:
    letters = len(_PROSE.findall(text))
    return (
        len(text.split()) >= 5
        and (text[0].isupper() or text[0] in "\"'(")
        and text.rstrip("\"')")[-1:] in tuple(".!?:")
        and letters >= 0.90 * len(text)
        and "`" not in text
        and text.isprintable()
    )
