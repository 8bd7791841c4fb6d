"""How the site (`make docs`) differs from the pages as the repository shows them: in links alone.

Pages beside docs/ (README.md is the start, benchmarks/, launch/, CHANGELOG.md ...) join the site,
and links between all of them are turned to where the pages are there. What a page links to that is
no page (a notebook, a file of code) is copied. The pages of the reference exist in the site only:
losses, samplers and evaluators from their registries, commands and config keys from their knobs.

Nothing here needs JAX: docstrings are read, and commands and settings import none.
"""

import ast
import html
import pathlib
import posixpath
import re
import sys
from collections.abc import Iterator

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = "docs/"
# Pages that are not in docs/, by patterns from the root.
OUTSIDE = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benchmarks/*.md",
    "launch/README.md",
    "notebooks/README.md",
)
BENCHMARKS = "Benchmarks"  # the part of the navigation that takes all pages of that folder
LINK = re.compile(r"\[([^\]\n]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
# For each kind of plug-in its registry, the words above its page, and bases shown at its end.
REGISTRIES = {
    "losses": (
        "flm_jax/losses/__init__.py",
        "LOSSES",
        "# Losses\n\nObjectives by name, `--config.loss.name=NAME`; attributes are their options, "
        "`--config.loss.options.ATTRIBUTE=VALUE`.\n",
        (
            "flm_jax.losses.flow_map.FlowMapLoss",
            "flm_jax.losses.rounds.Rounds",
            "flm_jax.losses.two_model.TwoModelLoss",
        ),
    ),
    "samplers": (
        "flm_jax/samplers/__init__.py",
        "SAMPLERS",
        "# Samplers\n\nUpdate rules by name, `--config.sampler.name=NAME` or `--sampler=NAME`; "
        "attributes are their options, `--sampler_options=ATTRIBUTE=VALUE`. Knobs that all of them "
        "share are in [config keys](config.md#sampler).\n",
        (),
    ),
    "evals": (
        "flm_jax/evals/__init__.py",
        "EVALS",
        "# Evaluators\n\nMeasures of samples by name, `--config.evals=NAME,NAME`; options of the "
        "constructor are `--config.eval_options.NAME.OPTION=VALUE`.\n",
        (),
    ),
}
PYTHON = """# From Python

```python
import flm_jax

model = flm_jax.load("runs/q_fmlm")
samples = model.generate(num_samples=8, steps=1, seed=0)
print(samples.texts)
```

`flm_jax.load`, `FlowModel`, `Samples`, `Given` and `UserError` are the public names; how arrays are
named is at the end. Sampling knobs, such as `temperature`, are keywords of `generate`:
[config keys](config.md#sampler).

::: flm_jax.inference.loading.load
    options:
      heading: flm_jax.load
::: flm_jax.inference.model.FlowModel
    options:
      heading: flm_jax.FlowModel
::: flm_jax.inference.model.Samples
    options:
      heading: flm_jax.Samples
::: flm_jax.samplers.base.Given
    options:
      heading: flm_jax.Given
::: flm_jax.inference.scoring.Scores
::: flm_jax.inference.likelihood.Bound
::: flm_jax.inference.spans.Spans
::: flm_jax.errors.UserError
    options:
      heading: flm_jax.UserError

## Names of arrays

::: flm_jax
    options:
      show_root_heading: false
      show_root_toc_entry: false
      members: []
"""
CONTRACTS = """# Contracts

What a class of yours must have, `--config.loss.name=my_module:MyLoss` and so on. A class that lacks
something is refused where it is defined. [Your own loss](../own_loss.md) shows one from start to
end; the [map of the code](../code.md#what-do-i-touch) says what to touch in the package.

::: flm_jax.contracts.Needs
::: flm_jax.losses.base.Loss
::: flm_jax.losses.base.Batch
::: flm_jax.losses.base.PerToken
::: flm_jax.samplers.base.Sampler
::: flm_jax.samplers.base.Move
::: flm_jax.samplers.base.Written
::: flm_jax.samplers.loops.LoopSampler
::: flm_jax.flow.space.Space
::: flm_jax.flow.at.At
::: flm_jax.data.base.Corpus
::: flm_jax.tokenizers.base.Recipe
::: flm_jax.tokenizers.base.Tokenizer
::: flm_jax.evals.base.Evaluator
::: flm_jax.evals.base.Column
::: flm_jax.evals.base.Judge
"""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts every page of benchmarks/ into the navigation, those named there first."""
    for entry in config.nav or ():
        pages = entry.get(BENCHMARKS) if isinstance(entry, dict) else None
        if pages is not None:
            named = {page if isinstance(page, str) else next(iter(page.values())) for page in pages}
            found = sorted(place(path) for path in ROOT.glob("benchmarks/*.md"))
            pages += [page for page in found if page not in named]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages outside docs/, what pages link to, and the reference."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, place(path), abs_src_path=str(path)))
    for page in [file for file in files if file.is_documentation_page()]:
        for target in linked(pathlib.Path(page.abs_src_path or "")):
            if target.is_file() and files.get_file_from_path(place(target)) is None:
                files.append(File.generated(config, place(target), abs_src_path=str(target)))
    for name, text in reference().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to files of the repository to where they are in the site.

    Where the words of a link are the name of a page, its title takes their place.
    """
    if page.file.src_uri == "index.md":
        page.meta["hide"] = ["navigation"]  # it is the only page of its part
    source = pathlib.Path(page.file.abs_src_path or "")
    if not source.is_file():
        return markdown  # of the reference
    here = posixpath.dirname(page.file.src_uri)

    def turned(match: re.Match[str]) -> str:
        target = local(source, match[2])
        if target is None:
            return match[0]
        words = title(target) if re.fullmatch(r"[\w./]+\.md|\w+/", match[1]) else match[1]
        return f"[{words}]({posixpath.relpath(place(target), here)}{match[3] or ''})"

    return LINK.sub(turned, markdown)


def place(path: pathlib.Path) -> str:
    """Where a file of the repository is in the site: docs/data.md -> data.md."""
    name = path.relative_to(ROOT).as_posix()
    return "index.md" if name == "README.md" else name.removeprefix(DOCS)


def title(path: pathlib.Path) -> str:
    """The heading of a page, up to a colon."""
    head = re.search(r"^# (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return head[1].partition(":")[0] if head else path.stem


def local(source: pathlib.Path, link: str) -> pathlib.Path | None:
    """The file that a link of a page means, a folder's README.md; None if it is none of ours."""
    if "://" in link or link.startswith(("mailto:", "/")):
        return None
    target = (source.parent / link).resolve()
    if target.is_dir():
        target /= "README.md"
    return target if target.is_file() and target.is_relative_to(ROOT) else None


def linked(source: pathlib.Path) -> Iterator[pathlib.Path]:
    """The files of the repository that a page links to."""
    if not source.is_file():
        return
    for _, link, _ in LINK.findall(source.read_text(encoding="utf-8")):
        target = local(source, link)
        if target is not None:
            yield target


def reference() -> dict[str, str]:
    """The pages of the reference, Markdown by name."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    pages = {"python": PYTHON, "contracts": CONTRACTS}
    pages |= {name: registry_page(*row) for name, row in REGISTRIES.items()}
    return pages | {"commands": commands_page(), "config": config_page()}


def registry_page(path: str, name: str, head: str, bases: tuple[str, ...]) -> str:
    """The docstrings of everything in a registry: of its module, and of its class; then bases."""
    parts = [head]
    for label, (module, kind) in registry(ROOT / path, name).items():
        parts.append(
            f"## `{label}`\n\n"
            f"::: {module}\n    options:\n      show_root_heading: false\n"
            f"      show_root_toc_entry: false\n      members: []\n\n"
            f"::: {module}.{kind}\n    options:\n      heading_level: 3\n      members: []\n"
        )
    if bases:
        parts.append("## Bases\n")
    for base in bases:
        parts.append(f"::: {base}\n    options:\n      heading_level: 3\n      members: []\n")
    return "\n".join(parts)


def registry(path: pathlib.Path, name: str) -> dict[str, tuple[str, str]]:
    """The rows of a registry without importing it: name -> (module, class).

    PluginError if there is no such table, or a row is no plain name that the file imports.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    module_of = {
        alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
            rows = node.value
            if isinstance(rows, ast.Dict) and all(rows.keys):
                pairs = zip(rows.keys, map(ast.unparse, rows.values), strict=True)
                return {ast.literal_eval(key): (module_of[kind], kind) for key, kind in pairs}
    raise PluginError(f"{path} has no table {name}; docs/hooks.py makes a page of it")


def commands_page() -> str:
    """What every command does, and its options, as `flm COMMAND --help` has them."""
    from flm_jax import cli
    from flm_jax.cli.options import options_of

    parts = [
        "# Commands\n\n`flm COMMAND`, the same as `python -m flm_jax COMMAND`. "
        "`flm COMMAND --help` says the same on the command line, with the names of all losses, "
        "samplers and so on. Where `--config` is among the options, every [config key](config.md) "
        "is one, too.\n"
    ]
    for name in cli.COMMANDS:
        command = cli.load(name)
        first, _, rest = (command.about or "").strip().partition("\n")
        parts += [f"## flm {name}\n", escaped(first) + "\n", prose(rest)]
        rows = [option_row(option) for option in options_of(command.options).values()]
        if rows:
            parts.append(table("option", rows))
    return "\n".join(parts)


def option_row(option) -> str:
    """A line of a table for a `flm_jax.cli.options.Option`."""
    limits = option.limits
    shown = option.name.upper() if limits.get("word") else f"--{option.name}"
    meaning = option.field.metadata["meaning"]
    if limits.get("choices"):
        meaning += f": {' | '.join(limits['choices'])}"
    return row(shown, value(option.default), meaning)


def config_page() -> str:
    """Every key of a config with its default, from `flm_jax.config.settings`."""
    from flm_jax.config import settings

    parts = [
        "# Config keys\n\nA config is a file such as `configs/owt.py`; it starts from these "
        "defaults, which are the official ones, and every key is a flag, "
        "`--config.optim.learning_rate=1e-3`. Keys marked ↻ may change when a run continues.\n"
    ]
    sections: dict[str, list[str]] = {}
    for key, field in settings.knobs():
        section, _, name = key.rpartition(".")
        meaning = field.metadata["meaning"]
        choices = field.metadata["limits"].get("choices")
        if choices:
            meaning += f": {' | '.join(choices)}"
        mark = " ↻" * settings.is_changeable(key)
        default = settings.value_at(settings.Config(), key)
        line = row(key, value(default), meaning, mark)
        sections.setdefault(section, []).append(line)
    for section, rows in sections.items():
        parts.append(f"## {section or 'The run'}\n")
        parts.append(table("key", rows))
    return "\n".join(parts)


def table(first: str, rows: list[str]) -> str:
    """A table of settings."""
    return "\n".join([f"| {first} | default | meaning |", "|---|---|---|", *rows]) + "\n"


def row(name: str, default: str, meaning: str, mark: str = "") -> str:
    """A line of a table of settings."""
    shown = f"`{default}`" if default else ""
    if len(default) > 30:  # many values, which may stand in several lines
        shown = escaped(default.replace(",", ", "))
    return f"| `{name}`{mark} | {shown} | {escaped(meaning)} |"


def value(default) -> str:
    """A default as it is written on a command line; "" for what is absent."""
    if default in (None, "", (), {}):
        return ""
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def escaped(text: str) -> str:
    """Plain text as Markdown, also inside a table."""
    text = html.escape(text, quote=False).replace("|", "\\|")
    return re.sub(r"([*_\[\]])", r"\\\1", text)


def prose(text: str) -> str:
    """Plain text with indented examples as Markdown: examples stay, the rest is escaped."""
    lines = []
    for line in text.splitlines():
        lines.append(line if line.startswith("    ") else escaped(line))
    return "\n".join(lines) + "\n"
