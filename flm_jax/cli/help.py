"""What `flm --help` and `flm COMMAND --help` print: at most 100 columns."""

import importlib
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from flm_jax.cli.command import Command
from flm_jax.cli.options import Option, options_of
from flm_jax.config import settings
from flm_jax.config.settings import Config

_WIDTH = 100
_COLUMN = 44  # of the meanings
# Option or config key to the table that has its valid names.
_NAMES = {
    "sampler": "flm_jax.samplers:SAMPLERS",
    "loss": "flm_jax.losses:LOSSES",
    "chips": "flm_jax.lab.plan.chips:CHIPS",
    "config.sampler.name": "flm_jax.samplers:SAMPLERS",
    "config.loss.name": "flm_jax.losses:LOSSES",
    "config.data.name": "flm_jax.data:DATASETS",
    "config.tokenizer.name": "flm_jax.tokenizers:TOKENIZERS",
    "config.evals": "flm_jax.evals:EVALS",
}


def overview(abouts: Mapping[str, str]) -> str:
    """One line and one example per command, from the docstrings of their modules."""
    lines = ["Flow language models in JAX.  flm COMMAND --help explains a command.", ""]
    for name, about in abouts.items():
        lines.append(f"  {name:<18}{about.strip().splitlines()[0]}")
        lines.append(f"  {'':<18}  {_example(about)}")
    lines += ["", "flm --version says which one this is; python -m flm_jax is the same as flm."]
    return "\n".join(lines)


def _example(about: str) -> str:
    """The first command of a docstring, with the lines that a backslash continues."""
    found = re.search(r"^ *(flm (?:[^\n]*\\\n)*[^\n]*)", about, re.MULTILINE)
    words = found[1].replace("\\\n", " ").partition("  #")[0] if found else ""
    return " ".join(words.split())


def page(name: str, command: Command) -> str:
    """What a command does, its options, and the config keys if it takes a config."""
    options = options_of(command.options)
    places = [_placeholder(option) for option in options.values() if option.limits.get("word")]
    usage = " ".join(["flm", name, *places, "[--option=value ...]"])
    lines = [f"usage: {usage}", "", (command.about or "").strip(), "", "Options:"]
    for option in sorted(options.values(), key=lambda option: not option.limits.get("word")):
        lines.append(_entry(_head(option), _meaning(option.field, option.name, option.default)))
    if "config" in options:
        lines += ["", "Config keys and their defaults (files: configs/*.py, which set others):"]
        for key, field in settings.knobs():
            shown = _shown(settings.value_at(Config(), key))
            lines.append(_entry(f"--config.{key}={shown}", _meaning(field, f"config.{key}")))
    return "\n".join(lines)


def _placeholder(option: Option) -> str:
    return f"[{option.name.upper()} ...]" if option.takes_all else option.name.upper()


def _head(option: Option) -> str:
    if option.limits.get("word"):
        return _placeholder(option)
    return f"--[no]{option.name}" if option.plain_type is bool else f"--{option.name}=..."


def _meaning(field: Any, name: str, default: Any = None) -> str:
    text = field.metadata["meaning"]
    choices = field.metadata["limits"].get("choices")
    if name in _NAMES:
        module, _, table = _NAMES[name].partition(":")
        choices = vars(importlib.import_module(module))[table]
    if choices:
        text += f": {' | '.join(choices)}"
    return text if default in (None, "", (), False) else f"{text} (default: {_shown(default)})"


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _entry(name: str, text: str) -> str:
    indent = " " * _COLUMN
    wrapped = textwrap.fill(
        text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
    head = f"  {name}"
    fits = len(head) < _COLUMN - 1
    return head.ljust(_COLUMN) + wrapped[_COLUMN:] if fits else f"{head}\n{wrapped}"
