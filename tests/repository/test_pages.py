"""What stands on pages to be typed: commands parse and their configs load, Python runs or compiles.

Every command `flm ...` of every page goes through the parser that the command itself uses, and its
config is loaded and validated; every Python block is executed with a tiny model, or is named in
`NOT_RUN` with the reason.
"""

import ast
import collections.abc
import importlib
import pathlib
import re
import shlex
import sys

import pytest
import tiny

import flm_jax
from flm_jax import cli, experiment
from flm_jax import config as config_lib
from flm_jax.cli.options import ConfigFile, options_of, parse
from flm_jax.errors import UserError
from flm_jax.options import Drawing
from flm_jax.tokenizers import TOKENIZERS

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "launch/README.md")),
    *(ROOT / "notebooks").glob("*.md"),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
]
# Python blocks, by page and words in them, that are only compiled, and why.
NOT_RUN = {
    ("benchmarks/proof.md", "def write(grid)"): "needs a run of `flm proof`, an hour",
    ("docs/exporting.md", 'load("hf://USER/REPO")'): "needs a repository of a hub",
    ("docs/evaluation.md", "measuring.render(folder)"): "needs a folder that `flm compare` wrote",
}
# ... that another test runs.
ELSEWHERE = {
    ("README.md", "class Smoothed"): "test_readme.py",
    ("docs/method.md", "model.flow_map("): "test_readme.py",
    ("docs/exporting.md", "python sample.py STEPS SEED"): "tests/export/test_folder.py",
}
COMMAND = re.compile(r"(?:[A-Z][A-Z_]*=\S+ +)*(?:flm|python3? -m flm_jax(\.main)?) (.*)")
SCRIPT = re.compile(r"(?:[A-Z][A-Z_]*=\S+ +)*(?:python3? |bash )?([\w./]+\.(?:py|sh|sbatch))\b")
MAKE = re.compile(r"make ([a-z-]+)\b")


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of the fenced and the indented blocks of a page."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"(?:^\n(?=    )|\A)((?:(?:    .*)?\n)+)", rest, re.MULTILINE)
    return [*fenced, *(("", re.sub(r"^    ", "", code, flags=re.MULTILINE)) for code in indented)]


def lines(text: str) -> collections.abc.Iterator[str]:
    """The lines of all blocks that are not Python, with continued ones as one."""
    for language, code in blocks(text):
        if language != "python":
            yield from re.sub(r"\\\n\s*", "", code).splitlines()


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(name, words) of every command on a page.

    Comments and pipes are left out, and so is what stands behind "..." (more of the same).
    """
    found = []
    for line in lines(text):
        match = COMMAND.match(line.strip())
        if match is None:
            continue
        words = shlex.split(re.split(r" \.\.\.|\s\|\s", match[2])[0], comments=True)
        words = ["train", *words] if match[1] else words
        count = 2 if " ".join(words[:2]) in cli.COMMANDS else 1
        found.append((" ".join(words[:count]), words[count:]))
    return found


def checked(name: str, words: collections.abc.Sequence[str]) -> None:
    """Raises UserError for what the command would refuse of these words without reading anything.

    A value "..." or one capital letter stands for any, here 1; names in capitals are the reader's.
    """
    command = cli.load(name)
    known = [word for word in words if not re.match(r"--config\..*=\.\.\.$", word)]
    options = parse(command.options, [re.sub(r"=(\.\.\.|[A-Z])$", "=1", word) for word in known])
    if isinstance(options, Drawing):
        options.options_of_sampler()
    file = vars(options).get("config")
    if not isinstance(file, ConfigFile) or file.path is None:
        return
    path = file.path.partition(":")[0]
    if path.isupper() or path.startswith("my_"):
        return
    config = file.value
    if name == "train":
        config_lib.validate(config, experiment.tables())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_are_understood(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    wrong = []
    for name, words in commands(page.read_text(encoding="utf-8")):
        try:
            assert name in cli.COMMANDS, f"there is no command {name}"
            checked(name, words)
        except (UserError, AssertionError) as error:
            wrong.append(f"flm {name} {shlex.join(words)}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_scripts_and_targets_exist(page):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in lines(page.read_text(encoding="utf-8")):
        line = line.strip()
        if match := SCRIPT.match(line):
            made = "flm_jax/export/sample_onnx.py" if match[1] == "exported/sample.py" else match[1]
            assert (ROOT / made).is_file(), line
        if match := MAKE.match(line):
            assert match[1] in targets, line


def test_there_are_commands_and_mistakes_are_found(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = [row for page in PAGES for row in commands(page.read_text(encoding="utf-8"))]
    assert len(found) > 100
    assert {name for name, _ in found} >= {"train", "generate", "evaluate", "compare", "plan"}
    text = (
        "```\nflm generate \\\n  --checkpoint=a --prompt='b c' | head\n```\n\n    flm doctor  # x\n"
    )
    assert commands(text) == [("generate", ["--checkpoint=a", "--prompt=b c"]), ("doctor", [])]
    assert commands("\n    X=1 python -m flm_jax.main --config=a ... b\n") == [
        ("train", ["--config=a"])
    ]
    for words in (
        "generate --checkpoint=a --no_such=1",
        "generate --checkpoint=a --steps=0",
        "generate --checkpoint=a --sampler_options=7",
        "generate --steps=1",
        "train --config=quickstart:no_such --workdir=a",
        "train --config=no_such --workdir=a",
        "train --config=quickstart --config.optim.no_such=1 --workdir=a",
        "train --config=quickstart --config.loss.options.no_such=1 --workdir=a",
        "train --config=quickstart --config.sampler.name=euler --workdir=a",
    ):
        name, *rest = words.split()
        with pytest.raises(UserError):
            checked(name, rest)


def python_blocks() -> list[tuple[str, str]]:
    """(page, code) of all Python blocks."""
    found = []
    for page in PAGES:
        for language, code in blocks(page.read_text(encoding="utf-8")):
            if language == "python":
                found.append((page.relative_to(ROOT).as_posix(), code))
    return found


PYTHON = python_blocks()


def names_of_ours(code: str) -> list[str]:
    """Dotted names below flm_jax that a block imports or looks up, as far as they can be told."""
    tree = ast.parse(code)
    alias: dict[str, str] = {}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.partition(".")[0] == "flm_jax":
                    alias[name.asname or "flm_jax"] = name.name if name.asname else "flm_jax"
                    found.append(name.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flm_jax"):
            for name in node.names:
                alias[name.asname or name.name] = f"{node.module}.{name.name}"
                found.append(f"{node.module}.{name.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            if first in alias and re.fullmatch(r"[\w.]+", rest):
                found.append(f"{alias[first]}.{rest}")
    return found


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            if part not in dir(found):  # a field without a default is no attribute of its class
                return part in vars(found).get("__dataclass_fields__", {})
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize(("page", "code"), PYTHON, ids=[page for page, _ in PYTHON])
def test_python_compiles_and_names_what_there_is(page, code):
    compile(code, page, "exec")
    assert [name for name in names_of_ours(code) if not exists(name)] == []


def test_names_that_do_not_exist_are_found():
    code = "import flm_jax\nfrom flm_jax.losses import base\nflm_jax.lode('a')\nbase.Loss.drew"
    names = names_of_ours(code)
    wrong = {name for name in names if not exists(name)}
    assert wrong == {"flm_jax.lode", "flm_jax.losses.base.Loss.drew"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_names_in_prose_exist(page):
    """`flm_jax.load` and the like, in text and tables."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for name in re.findall(r"`(flm_jax(?:\.\w+)+)\(?", text):
        if not name.endswith((".py", ".md")):
            assert exists(name), name


def test_every_python_block_is_run_or_says_why_not():
    marked = {**NOT_RUN, **ELSEWHERE, **dict.fromkeys(RUN, "here")}
    for page, words in marked:
        assert any(page == where and words in code for where, code in PYTHON), (page, words)
    for where, code in PYTHON:
        assert any(page == where and words in code for page, words in marked), (where, code)


class Written:
    """The blocks of a page in the order of the page, each run with the names of those before."""

    def __init__(self, page: str):
        self.codes = [code for where, code in PYTHON if where == page]
        self.names: dict = {}

    def run(self, words: str) -> dict:
        """Runs the one block with these words in it."""
        (code,) = (code for code in self.codes if words in code)
        exec(compile(code, words, "exec"), self.names)
        return self.names


def model(folder: pathlib.Path, text: str, **changes) -> flm_jax.FlowModel:
    """A network of random weights over the characters of a text."""
    letters = TOKENIZERS["characters"]().build(lambda: [text] * 3)
    config = tiny.run_config(folder, **changes)
    made = experiment.Experiment(config, letters.vocab_size)
    return flm_jax.FlowModel(made, letters, tiny.params(made.model))


@pytest.mark.slow
def test_the_first_python_of_the_readme_writes(capsys):
    Written("README.md").run('load("stories")')  # the model that comes with the package
    free, prompted = map(ast.literal_eval, capsys.readouterr().out.splitlines())
    assert len(free) == 4 and all(text.startswith("One day, a little cat") for text in prompted)


@pytest.mark.slow
def test_the_page_on_writing_runs(tmp_path, monkeypatch):
    page = Written("docs/writing.md")
    text = "".join(sorted(set("".join(page.codes)) - {"\n"}))
    given = {"loss": {"name": "flow_matching", "options": {"given": "uniform"}}}
    made = model(tmp_path, text, data__length=96, **given)
    monkeypatch.setattr(flm_jax, "load", lambda path: made)
    shortened = made.generate
    monkeypatch.setattr(  # two steps for 32: nothing depends on their number but time
        made, "generate", lambda count=8, steps=None, **rest: shortened(count, 2, **rest)
    )
    page.run("Once upon a time")
    names = page.run("reward=wanted")
    samples = names["samples"]
    assert len(samples.texts) == 8 and samples.gradients == samples.evaluations / 2
    names = page.run("model.score")
    assert names["scores"].nats.shape == (2,)


@pytest.fixture
def own_loss(tmp_path, monkeypatch):
    """The page on losses, with its module and its config written down where they are found."""
    page = Written("docs/own_loss.md")
    source, _, config = page.codes
    (tmp_path / "my_losses.py").write_text(source)
    (tmp_path / "my_experiment.py").write_text(config)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield page
    sys.modules.pop("my_losses", None)


def test_the_config_of_the_page_on_own_losses_is_valid(own_loss):
    texts = commands((ROOT / "docs/own_loss.md").read_text())
    trainings = [words for name, words in texts if name == "train"]
    assert len(trainings) == 2
    for words in trainings:
        options = parse(cli.load("train").options, words)
        config_lib.validate(options.config.value, experiment.tables())


@pytest.mark.slow
def test_the_test_of_the_page_on_own_losses_passes(own_loss):
    own_loss.run("np.testing")


RUN = [
    ("README.md", 'load("stories")'),
    ("docs/writing.md", "Once upon a time"),
    ("docs/writing.md", "reward=wanted"),
    ("docs/writing.md", "model.score"),
    ("docs/own_loss.md", "class Focal"),
    ("docs/own_loss.md", "np.testing"),
    ("docs/own_loss.md", "my_losses:Focal"),
]


def test_options_of_all_commands_can_be_listed():
    """The reference of the site is made of them."""
    for name in cli.COMMANDS:
        assert options_of(cli.load(name).options) is not None and cli.load(name).about
