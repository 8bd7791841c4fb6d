"""Flags of the command-line tools, a --help one can read, and errors as one sentence.

CONFIG = config.config_flag()            # --config=FILE[:STAGE] and --config.section.key=value
STEPS = flags.DEFINE_string("steps", "1,8,32", "network evaluations")

def main(argv):                          # argv[1:] are the positional arguments
    settings = CONFIG.value              # a frozen config.Config
    ...
    return 0                             # exit code; None is 0

if __name__ == "__main__":
    config.run_main(main)
"""

import collections.abc
import logging
import sys
import textwrap
from typing import Any

from absl import flags
from absl import logging as absl_logging

from flm_jax.cli import streams
from flm_jax.config import settings
from flm_jax.config.loading import load
from flm_jax.config.settings import Config
from flm_jax.errors import UserError
from flm_jax.host.folders import no_home
from flm_jax.registry import nearest
from flm_jax.sampling import knob_fields


class ConfigFlag:
    """The value of --config with all its overrides; made by `config_flag`."""

    def __init__(self, name: str, flag_values: flags.FlagValues):
        self.name = name
        self.overrides: dict[str, str] = {}
        self._flags = flag_values

    @property
    def path(self) -> str | None:
        """The file as given, None if the flag is absent."""
        return self._flags[self.name].value

    @property
    def present(self) -> bool:
        return self.path is not None

    @property
    def value(self) -> Config:
        """The resolved config; raises UserError if the flag is absent or does not fit."""
        if self.path is None:
            raise UserError(
                f"--{self.name}=FILE is missing; try --{self.name}=configs/quickstart.py"
            )
        return load(self.path, self.overrides)

    def take_overrides(self, argv: collections.abc.Sequence[str]) -> list[str]:
        """Keeps ``--config.key=value`` (or ``--config.key value``) and returns the other words."""
        rest, words = [], iter(argv)
        self.overrides = {}
        for word in words:
            if word == "--":
                return [*rest, word, *words]
            bare = word[2:] if word.startswith("--") else word[1:] if word[:1] == "-" else ""
            if not bare.startswith(f"{self.name}."):
                rest.append(word)
                continue
            key, equals, value = bare[len(self.name) + 1 :].partition("=")
            if not equals:
                value = next(words, None)
                if value is None or value.startswith("--"):
                    raise UserError(f"{word} has no value; write {word}=VALUE")
            self.overrides[key] = value
        if self.overrides and not any(self._is_flag(word) for word in rest):
            first = next(iter(self.overrides))
            raise UserError(
                f"--{self.name}.{first} changes a config, but no --{self.name}=FILE is given"
            )
        return rest

    def _is_flag(self, word: str) -> bool:
        return word.lstrip("-").partition("=")[0] == self.name and word.startswith("-")


_DEFINED: dict[str, ConfigFlag] = {}


def config_flag(name: str = "config", flag_values: flags.FlagValues = flags.FLAGS) -> ConfigFlag:
    """Defines --config and returns its holder; ``.value`` is the resolved Config after parsing."""
    if name not in flag_values:
        flags.DEFINE_string(
            name,
            None,
            "config file, or FILE:STAGE; any value: --config.KEY=VALUE",
            flag_values=flag_values,
        )
        _DEFINED[name] = ConfigFlag(name, flag_values)
    return _DEFINED[name]


def sampling_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines a flag for every sampling knob; None where it is not given."""
    for field in knob_fields():
        define = flags.DEFINE_integer if field.type is int else flags.DEFINE_float
        define(field.name, None, field.metadata["meaning"], flag_values=flag_values)


def given_sampling(flag_values: flags.FlagValues = flags.FLAGS) -> dict[str, float]:
    """The sampling knobs that were given as flags, by name."""
    values = {field.name: flag_values[field.name].value for field in knob_fields()}
    return {name: value for name, value in values.items() if value is not None}


def run_main(
    main: collections.abc.Callable[[list[str]], Any],
    argv: collections.abc.Sequence[str] | None = None,
    needs_reader: bool = True,
) -> None:
    """Parses flags, runs ``main(argv)`` and exits with its code, as `exit_with` says.

    --help prints the module's docstring, its flags and (with --config) every config key.
    """
    words = list(sys.argv if argv is None else argv)
    exit_with(lambda: _run(main, words), needs_reader)


def exit_with(command: collections.abc.Callable[[], int | None], needs_reader: bool = True) -> None:
    """Runs a command to its end and exits with the code that it returns; None is 0.

    A UserError is printed as "error: ..." on stderr, exit code 2 (`errors.TryAgain`: 75), no
    traceback. Ctrl-C exits with 130. Text that standard output cannot say becomes "?". What
    standard error does not take is dropped.

    Args:
      needs_reader: end with 141, as others do, when the reader of standard output has gone, and
        with 2 when its disk is full. False for work that is in files, such as training: it goes on,
        and the exit code is that of the work.
    """
    streams.protect(needs_reader)
    try:
        code = _code_of(command)
        sys.stdout.flush()
    except streams.NobodyReads:
        code = 141
    except UserError as error:  # of the flush
        code = _say(error)
    sys.exit(code)


def _code_of(command: collections.abc.Callable[[], int | None]) -> int | str:
    try:
        return command() or 0
    except SystemExit as asked:  # --help of argparse, say; what it printed is not flushed yet
        return asked.code or 0
    except UserError as error:
        return _say(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except RuntimeError as error:
        if "home directory" not in str(error):  # how `pathlib` says that ~ is nowhere
            raise
        print(f"error: {no_home()}", file=sys.stderr)
        return 2


def _say(error: UserError) -> int:
    first, *others = str(error).splitlines() or [""]
    print("\n".join([f"error: {first}", *(f"       {line}" for line in others)]), file=sys.stderr)
    return error.exit_code


def _run(main: collections.abc.Callable[[list[str]], Any], argv: list[str]) -> int | None:
    if any(word in ("-h", "--h", "-help", "--help", "--helpfull") for word in argv[1:]):
        print(_help_text(main))
        return 0
    words = argv
    for holder in _DEFINED.values():
        words = [argv[0], *holder.take_overrides(words[1:])]
    try:
        words = flags.FLAGS(words)
    except flags.Error as error:
        raise UserError(_flag_sentence(error)) from None
    _show_plain_warnings()
    return main(words)


class _Plain(logging.Formatter):
    """Log lines as a person would write them: "warning: text"."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {record.getMessage()}"


def _show_plain_warnings() -> None:
    absl_logging.use_absl_handler()
    absl_logging.get_absl_handler().setFormatter(_Plain())


def _flag_sentence(error: flags.Error) -> str:
    if isinstance(error, flags.UnrecognizedFlagError):
        hint = nearest(error.flagname, flags.FLAGS)
        return f"unknown flag --{error.flagname}{hint or '; --help lists the flags'}"
    return " ".join(str(error).split())


def _help_text(main: collections.abc.Callable[[list[str]], Any]) -> str:
    """The tool's docstring, its own flags, and the config keys if it takes a config."""
    module = main.__globals__["__name__"]
    owner = sys.argv[0] if module == "__main__" else module
    own = flags.FLAGS.get_flags_for_module(owner)
    own += [flags.FLAGS[field.name] for field in knob_fields() if field.name in flags.FLAGS]
    lines = [(main.__globals__.get("__doc__") or "").strip(), "", "Flags:"]
    holders = [flags.FLAGS[name] for name in _DEFINED if name in flags.FLAGS]
    for flag in [*holders, *sorted(own, key=lambda flag: flag.name)]:
        default = "" if flag.default in (None, "") else f" (default: {flag.default})"
        lines.append(_entry(f"--{flag.name}", f"{flag.help}{default}"))
    if holders:
        lines += ["", "Config keys and their defaults (files: configs/*.py, which set others):"]
        for key, field in settings.knobs():
            default = settings.value_at(Config(), key)
            choices = field.metadata["limits"].get("choices")
            meaning = field.metadata["meaning"] + (f": {' | '.join(choices)}" if choices else "")
            shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
            lines.append(_entry(f"--config.{key}={shown}", meaning))
    return "\n".join(lines)


def _entry(name: str, text: str) -> str:
    indent = " " * 44
    wrapped = textwrap.fill(text, 100, initial_indent=indent, subsequent_indent=indent)
    head = f"  {name}"
    return head.ljust(44) + wrapped[44:] if len(head) < 43 else f"{head}\n{wrapped}"
