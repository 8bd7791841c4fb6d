"""The site: what is generated is up to date, its hook turns links as it says, docstrings fit."""

import ast
import configparser
import importlib.util
import pathlib
import re
import subprocess
import sys
import types

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def script(path: str) -> types.ModuleType:
    """A file of Python outside the package, imported."""
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def architecture():
    return script("docs/architecture.py")


@pytest.fixture(scope="module")
def hooks():
    """The hook, without mkdocs, which is in an environment of its own."""
    fakes = {name: types.ModuleType(name) for name in ("mkdocs", "mkdocs.config")}
    for name, classes in {
        "mkdocs.config.defaults": ["MkDocsConfig"],
        "mkdocs.exceptions": ["PluginError"],
        "mkdocs.structure": [],
        "mkdocs.structure.files": ["File", "Files"],
        "mkdocs.structure.pages": ["Page"],
    }.items():
        fakes[name] = types.ModuleType(name)
        vars(fakes[name]).update({kind: type(kind, (Exception,), {}) for kind in classes})
    with pytest.MonkeyPatch.context() as patch:
        for name, fake in fakes.items():
            patch.setitem(sys.modules, name, fake)
        return script("docs/hooks.py")


def test_picture_and_table_follow_the_rules_of_imports(architecture):
    rules = architecture.rules()
    again = "run: python docs/architecture.py"
    assert architecture.PICTURE.read_text() == architecture.picture(rules), again
    text = architecture.PAGE.read_text()
    assert text == architecture.page(text, rules), again
    rooms = [room for layer in architecture.layers(rules) for room in layer]
    assert {*rooms, "flm_jax", "configs", "__main__"} == set(rules.MAY_IMPORT)
    assert len(rooms) == len(set(rooms))
    for level, layer in enumerate(architecture.layers(rules)):
        above = {room for higher in architecture.layers(rules)[level + 1 :] for room in higher}
        assert not any(rules.MAY_IMPORT[room] & above for room in layer)


def test_a_new_rule_changes_the_table(architecture):
    rules = architecture.rules()
    before = architecture.imports(rules)
    rules.MAY_IMPORT["tokenizers"] = {"host", "config"}
    assert architecture.imports(rules) != before
    assert "| 2 | `evals` | layer 1, `data` |" in before


def test_files_have_one_place_in_the_site(hooks):
    places = {
        "README.md": "index.md",
        "docs/data.md": "data.md",
        "docs/strip.svg": "strip.svg",
        "benchmarks/proof.md": "benchmarks/proof.md",
        "launch/README.md": "launch/README.md",
    }
    assert {name: hooks.place(ROOT / name) for name in places} == places


def test_links_to_files_of_the_repository_are_told_from_others(hooks):
    page = ROOT / "docs/code.md"
    assert hooks.local(page, "../README.md") == ROOT / "README.md"
    assert hooks.local(page, "../benchmarks/") == ROOT / "benchmarks/README.md"
    assert hooks.local(page, "https://arxiv.org") is None
    assert hooks.local(page, "no_such.md") is None
    assert hooks.local(page, "../../elsewhere.md") is None


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("docs/code.md", "[a](../README.md#install)", "[a](index.md#install)"),
        ("docs/code.md", "[a](data.md)", "[a](data.md)"),
        ("docs/code.md", "[a](../benchmarks/cpu.md)", "[a](benchmarks/cpu.md)"),
        ("docs/code.md", "[data.md](data.md)", "[Text](data.md)"),
        ("README.md", "[a](docs/data.md#batches)", "[a](data.md#batches)"),
        ("README.md", "![a](docs/strip.svg)", "![a](strip.svg)"),
        ("benchmarks/cpu.md", "[a](../docs/data.md)", "[a](../data.md)"),
        ("benchmarks/cpu.md", "[a](#here), [b](https://x.y/z)", "[a](#here), [b](https://x.y/z)"),
        ("benchmarks/cpu.md", "x[0](y)", "x[0](y)"),
    ],
)
def test_links_are_turned(hooks, name, before, after):
    file = types.SimpleNamespace(
        abs_src_path=str(ROOT / name), src_uri=hooks.place(ROOT / name), generated_by=None
    )
    page = types.SimpleNamespace(file=file, meta={})
    assert hooks.on_page_markdown(before, page, None, None) == after


def test_the_reference_has_every_row_of_every_registry_and_every_key(hooks):
    from flm_jax.config import settings
    from flm_jax.evals import EVALS
    from flm_jax.losses import LOSSES
    from flm_jax.samplers import SAMPLERS

    pages = hooks.reference()
    for name, rows in (("losses", LOSSES), ("samplers", SAMPLERS), ("evals", EVALS)):
        for label, kind in rows.items():
            assert f"## `{label}`\n\n::: {kind.__module__}\n" in pages[name]
            assert f"::: {kind.__module__}.{kind.__name__}\n" in pages[name]
    for key, _ in settings.knobs():
        assert f"| `{key}`" in pages["config"], key
    for line in (pages["config"] + pages["commands"]).splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 4, line
    named = re.findall(r"^::: ([\w.]+)$", pages["python"] + pages["contracts"], re.MULTILINE)
    assert len(named) > 20
    for name in named:
        module, _, attribute = name.rpartition(".")
        assert name == "flm_jax" or attribute in vars(importlib.import_module(module)), name


def test_text_of_docstrings_is_no_markup(hooks):
    assert hooks.escaped("a_b *c* [MASK] <d> e|f") == r"a\_b \*c\* \[MASK\] &lt;d&gt; e\|f"
    assert hooks.prose("one_two\n    flm a_b\n").splitlines() == [r"one\_two", "    flm a_b"]


def test_what_makes_the_site_is_bounded_and_listed_without_the_rest():
    found = configparser.ConfigParser(interpolation=None)
    found.read(ROOT / "setup.cfg")
    command = [sys.executable, str(ROOT / ".ci/extra.py"), "docs"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert any(line.startswith("mkdocs-material") for line in listed)
    assert all(">=" in line for line in listed) and not any("jax" in line for line in listed)


def strangers(source: str) -> list[str]:
    """Arguments that docstrings explain and functions do not have: `make docs` would end there."""
    found = []
    for node in ast.walk(ast.parse(source)):
        functions = [node]
        if isinstance(node, ast.ClassDef):  # its docstring may explain the constructor
            functions = [f for f in node.body if getattr(f, "name", "") == "__init__"]
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node) or ""
        section = re.search(r"^Args:\n((?:  .*\n?|\n(?=  ))+)", text, re.MULTILINE)
        if section is None or not functions:
            continue
        arguments = functions[0].args
        plain = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        names = {argument.arg for argument in plain}
        names |= {star.arg for star in (arguments.vararg, arguments.kwarg) if star is not None}
        for explained in re.findall(r"^  (\S[^:]*):", section[1], re.MULTILINE):
            if explained.lstrip("*") not in names:
                found.append(f"{node.name}: {explained}")
    return found


def test_docstrings_explain_the_arguments_that_there_are():
    paths = sorted((ROOT / "flm_jax").rglob("*.py"))
    found = {str(path): strangers(path.read_text(encoding="utf-8")) for path in paths}
    assert {path: names for path, names in found.items() if names} == {}
    text = 'def f(a, *b):\n  """X.\n\n  Args:\n    a: x\n      y: z.\n    b: x\n    c, d: x.\n  """'
    assert strangers(text) == ["f: c, d"]
