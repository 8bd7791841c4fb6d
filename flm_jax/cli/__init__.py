"""The command line, `flm COMMAND` or `python -m flm_jax COMMAND`: one thin file per command.

options.py    words to a frozen dataclass of knobs, with a sentence for every mistake
command.py    what a command is
help.py       the overview and the page of a command, from its docstring and its dataclass
exits.py      exit codes; streams.py what standard output does not take
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from flm_jax.cli import exits, help
from flm_jax.cli.command import Command
from flm_jax.cli.options import parse
from flm_jax.errors import UserError
from flm_jax.registry import nearest

# The words of a command to its module here.
COMMANDS = {
    "quickstart": "quickstart",
    "train": "train",
    "generate": "generate",
    "evaluate": "evaluate",
    "solve": "solve",
    "prepare": "prepare",
    "inspect": "inspect",
    "convert": "convert",
    "export": "export",
    "push": "push",
    "demo": "demo",
    "plan": "plan",
    "benchmark": "benchmark",
    "benchmark data": "benchmark_data",
    "parity": "parity",
    "parity precision": "parity_precision",
    "compare": "compare",
    "proof": "proof",
    "reproduce": "reproduce",
    "report": "report",
    "doctor": "doctor",
    "completion": "completion",
}
_HELP = ("-h", "--h", "-help", "--help", "--helpfull")


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Runs the command that the words (by default sys.argv's) name, and exits with its code."""
    if words is None:
        words = sys.argv[1:]
        if not sys.flags.safe_path and os.getcwd() not in sys.path:
            # As `python -m` has it: my_module:MyLoss is found in the current folder, and a run
            # that was trained with it can be loaded with the command that was printed.
            sys.path.insert(0, os.getcwd())
    words = list(words)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    name, rest = _split(words)
    if not name:
        exits.exit_with(lambda: _without_command(words))
    start(name, load(name), rest)


def load(name: str) -> Command:
    """The command of that name, a key of `COMMANDS`."""
    return importlib.import_module(f"flm_jax.cli.{COMMANDS[name]}").COMMAND


def start(name: str, command: Command, words: Sequence[str]) -> NoReturn:
    """Runs a command, which need not be in the table, and exits with its code."""

    def work() -> int | None:
        options = parse(command.options, words)
        _prepare_absl()
        return command.run(options)

    if any(word in _HELP for word in words):
        exits.exit_with(lambda: print(help.page(name, command)))
    exits.exit_with(work, command.needs_reader)


def _split(words: list[str]) -> tuple[str, list[str]]:
    """The name of the command ("" if there is none) and what follows it."""
    for count in (2, 1):
        if (name := " ".join(words[:count])) in COMMANDS:
            return name, words[count:]
    return "", words


def _without_command(words: list[str]) -> None:
    first = words[0] if words else "--help"
    if first in _HELP:
        abouts = {name: load(name).about or name for name in COMMANDS}
        return print(help.overview(abouts))
    if first in ("--version", "-version", "version"):
        from flm_jax import __version__

        return print(f"flm_jax {__version__}")
    if first.startswith("-"):
        raise UserError(
            f"{first} comes after a command, as in: flm train {first} ...; see flm help"
        )
    hint = nearest(first, [*COMMANDS, "help"]) or "; flm help lists them"
    raise UserError(f"there is no command {first!r}{hint}")


def _prepare_absl() -> None:
    """Warnings as a person would write them, and flags that grain's workers may read."""
    import logging

    from absl import flags
    from absl import logging as absl_logging

    class Plain(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return f"{record.levelname.lower()}: {record.getMessage()}"

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    absl_logging.use_absl_handler()
    absl_logging.get_absl_handler().setFormatter(Plain())
