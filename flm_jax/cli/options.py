"""The words of a command line to a frozen dataclass of knobs, and back.

@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Configured):                       # --config=FILE[:STAGE] and --config.KEY=VALUE
    workdir: str = knob("", "folder of the run", needed="--workdir=DIR is missing")
    verify: bool = knob(False, "look at every byte")            # --verify, --noverify
    steps: tuple[int, ...] = knob((1,), "sampling steps", at_least=1)         # --steps=1,8,32

parse(Options, ["--workdir", "runs/q", "--config=configs/owt.py", "--config.seed=3"])
"""

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from flm_jax import config as config_lib
from flm_jax import knobs
from flm_jax.config import settings
from flm_jax.config.coercion import coerce
from flm_jax.errors import UserError
from flm_jax.knobs import knob

T = TypeVar("T")

_EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    tuple[float, ...]: "a list of numbers such as 1e-3,3e-3",
    tuple[int, ...]: "a list of whole numbers such as 1,8,32",
    tuple[str, ...]: "a list of words with commas between them",
}
# What other tools call our options, and what to do about theirs that we do not have.
_ALIASES = {
    "lr": "learning_rate",
    "bs": "batch_size",
    "ckpt": "checkpoint",
    "model": "checkpoint",
    "model_path": "checkpoint",
    "n": "num_samples",
    "nfe": "steps",
    "num_steps": "steps",
    "max_steps": "steps",
    "out": "output",
    "o": "output",
    "output_dir": "workdir",
    "logdir": "workdir",
}
_WHERE = "JAX uses the accelerators that it finds; JAX_PLATFORMS=cpu before the command chooses"
_INSTEAD = {
    "epochs": "training is counted in steps: --config.train.steps=N",
    **dict.fromkeys(("device", "devices", "gpu", "gpus", "cuda", "cpu", "tpu"), _WHERE),
}


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """What --config=FILE[:STAGE] and --config.KEY=VALUE say."""

    path: str | None = None
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)

    @property
    def given(self) -> bool:
        return self.path is not None or bool(self.overrides)

    @property
    def value(self) -> config_lib.Config:
        """The resolved config; raises UserError if the file is absent or does not fit."""
        if self.path is not None:
            return config_lib.load(self.path, self.overrides)
        for key in self.overrides:
            raise UserError(f"--config.{key} changes a config, but no --config=FILE is given")
        raise UserError("--config=FILE is missing; try --config=configs/quickstart.py")

    def words(self) -> list[str]:
        """The words that say this."""
        path = [] if self.path is None else [f"--config={self.path}"]
        return path + [f"--config.{key}={value}" for key, value in self.overrides.items()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Configured:
    """Options of a command about a config."""

    config: ConfigFile = knob(
        ConfigFile(), "config file, or FILE:STAGE; any value of it: --config.KEY=VALUE"
    )


@dataclasses.dataclass(frozen=True)
class Option:
    """One option: its name and type, the field that explains it, the field that it is put in."""

    name: str
    type: Any
    field: dataclasses.Field
    goes_to: str

    @property
    def limits(self) -> dict[str, Any]:
        return self.field.metadata["limits"]

    @property
    def default(self) -> Any:
        """The value when it is not given; None if that depends on a config."""
        found = self.field.default
        return None if self.goes_to != self.name or isinstance(found, ConfigFile) else found

    @property
    def plain_type(self) -> Any:
        """The type without None."""
        kinds = [kind for kind in typing.get_args(self.type) if kind is not type(None)]
        optional = type(None) in typing.get_args(self.type)
        return kinds[0] if optional else self.type

    @property
    def takes_all(self) -> bool:
        """Whether it is all words that have no name, whatever is in them."""
        return self.limits.get("word", False) and self.plain_type == tuple[str, ...]

    def read(self, text: str) -> Any:
        """The value that a text means; UserError if it has another type or is out of range."""
        kind = self.plain_type
        name = self.name.upper() if self.limits.get("word") else f"--{self.name}"
        parts = text.split(",") if typing.get_origin(kind) is tuple else ["one"]
        empty = not all(part.strip() for part in parts)
        try:
            if empty and (len(parts) > 1 or self.limits.get("nonempty")):
                raise UserError(text)
            value = coerce(text, kind, name)
        except UserError:
            raise UserError(f"{name}={text} is not {_EXPECTED[kind]}") from None
        if problem := knobs.problem(name, value, self.field):
            raise UserError(problem)
        return value


def options_of(kind: type) -> dict[str, Option]:
    """All options of a dataclass by name, in order of definition."""
    hints = typing.get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        each = field.metadata["limits"].get("each")
        for one in (field,) if each is None else each:
            annotation = hints[field.name] if each is None else one.type
            found[one.name] = Option(one.name, annotation, one, field.name)
    return found


def parse(kind: type[T], words: Sequence[str]) -> T:
    """The options that the words say: --name=value, --name value, --flag, --noflag, plain words.

    Raises UserError for an unknown option (with the nearest one), a value of another type or out
    of range, a word too many, and what is needed but missing.
    """
    known = options_of(kind)
    values: dict[str, Any] = {}
    path, overrides, plain = None, {}, []
    rest = iter(words)
    for word in rest:
        if word == "--":
            plain += rest
            continue
        if not word.startswith("-") or word == "-":
            plain.append(word)
            continue
        name, text = _name_and_text(word, rest, known)
        if name == "config":
            path = text
        elif name not in known:
            overrides[name.removeprefix("config.")] = text
        elif known[name].goes_to == name:
            more = values.get(name, ()) if known[name].limits.get("repeated") else ()
            value = known[name].read(text)
            values[name] = (*more, *value) if more else value
        else:
            values.setdefault(known[name].goes_to, {})[name] = known[name].read(text)
    if "config" in known:
        values["config"] = ConfigFile(path, overrides)
    for option in known.values():
        if option.limits.get("word") and plain:
            if option.takes_all:
                values[option.name], plain = tuple(plain), []
            else:
                values[option.name] = option.read(plain.pop(0))
    if plain:
        raise UserError(f"unexpected argument {plain[0]!r}; options are written --name=value")
    for option in known.values():
        if option.limits.get("needed") and not values.get(option.goes_to):
            raise UserError(option.limits["needed"])
    return kind(**values)


def _name_and_text(word: str, rest: Iterator[str], known: Mapping[str, Option]) -> tuple[str, str]:
    """The option or config.KEY that a word names, and its value, which may be the next word."""
    name, equals, text = word.lstrip("-").partition("=")
    is_key = "config" in known and name.startswith("config.")
    if name not in known and not is_key:
        positive = known.get(name.removeprefix("no"))
        if equals or positive is None or positive.plain_type is not bool:
            raise _unknown(name, known)
        return positive.name, "false"
    if not equals and not is_key and known[name].plain_type is bool:
        return name, "true"
    text = text if equals else next(rest, "--")
    if not equals and text.startswith("--"):
        raise UserError(f"--{name} has no value; write --{name}=VALUE")
    return name, text


def words_of(options: Any) -> list[str]:
    """The words that `parse` makes these options of; those at their defaults are left out."""
    plain, named = [], []
    for option in options_of(type(options)).values():
        value = vars(options)[option.goes_to]
        if isinstance(value, ConfigFile):
            named += value.words()
            continue
        if option.goes_to != option.name:
            value = value.get(option.name)
        if value is None or value == option.default:
            continue
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        if option.takes_all:
            plain += value
        elif option.limits.get("word"):
            plain.append(text)
        else:
            named.append(f"--{option.name}={text}")
    return plain + named


def full_names(known: Mapping[str, Option]) -> dict[str, list[str]]:
    """What can be written on a command line by its last word: learning_rate to --config.optim..."""
    names: dict[str, list[str]] = {}
    if "config" in known:
        for key, _ in settings.knobs():
            names.setdefault(key.rpartition(".")[2], []).append(f"--config.{key}")
    return names | {name: [f"--{name}"] for name in known}


def _unknown(name: str, known: Mapping[str, Option]) -> UserError:
    """The sentence about an option that is not there: what it is called here, or the nearest."""
    names, bare = full_names(known), name.replace("-", "_")
    near = difflib.get_close_matches(bare, names, n=1, cutoff=0.6)
    found = next((n for n in (bare, _ALIASES.get(bare), *near) if n in names), None)
    if bare in _INSTEAD:
        hint = _INSTEAD[bare]
    elif found:
        hint = f"did you mean {' or '.join(names[found])}?"
    else:
        hint = "--help lists the options"
    return UserError(f"unknown option --{name}; {hint}")
