"""From a config file, dict or JSON to the frozen `Config`, and what differs between two of them."""

import collections.abc
import copy
import dataclasses
import difflib
import json
import pathlib
import typing
from typing import Any

from flm_jax.config import files, settings
from flm_jax.config.coercion import coerce, parse_literal
from flm_jax.config.settings import Config
from flm_jax.errors import UserError

# Old names of knobs, in stored configs, config files and on the command line: (section, old, new,
# the row of the section's table that had it).
_MOVED = (("sampler", "gamma", "gamma", "flow_map"),)

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Section = typing.TypeVar("_Section", bound="DataclassInstance")


def load(path: str, overrides: collections.abc.Mapping[str, Any] | None = None) -> Config:
    """Loads ``get_config()`` of a Python file, or a stored config, and applies overrides.

    Args:
      path: "configs/quickstart.py" or, from any folder, "quickstart"; with ":distill" behind it to
        call ``get_config("distill")``. "runs/quickstart/config.json" is what a run was told.
      overrides: dotted names to values, for example ``{"optim.learning_rate": 1e-3}``; text is
        parsed as on the command line.

    Raises UserError if the file is missing, fails, or does not fit.
    """
    file, stage = files.find(path)
    if file.suffix == ".json":
        config: Config | dict = _stored(file, stage)
    else:
        config = _plain(files.run(file, stage), path)
    return changed(config, overrides or {})


def changed(config: Config | dict, overrides: collections.abc.Mapping[str, Any]) -> Config:
    """A config with other values by dotted name, as `load` applies them."""
    tree = _plain(config, "the config")
    for key, value in overrides.items():
        _override(tree, key, value)
    return resolve(tree)


def resolve(config: Any) -> Config:
    """Turns a ConfigDict or nested dict into a frozen Config; missing knobs take their default.

    Raises UserError for an unknown key (with the nearest known one) or a value of a wrong type.
    """
    if isinstance(config, Config):
        return config
    return resolve_section(Config, _with_new_names(_plain(config, "the config")))


def resolve_section(
    section: type[_Section], values: _Section | collections.abc.Mapping, name: str = ""
) -> _Section:
    """A section of the config, from its values; missing knobs take their default.

    Args:
      values: by key, of any type that can be converted; or the section itself.
      name: of the section in messages, "data".

    Raises UserError for an unknown key (with the nearest known one) or a value of a wrong type.
    """
    if isinstance(values, section):
        return values
    hints = typing.get_type_hints(section)
    if not isinstance(values, collections.abc.Mapping):
        raise UserError(
            f"config section {name!r} is {values!r} but must be a section with the keys "
            + ", ".join(hints)
        )
    former = {
        field.name: field.metadata.get("limits", {}).get("former", {})
        for field in dataclasses.fields(section)  # pyright: ignore[reportArgumentType]
    }
    found = {}
    for key, value in values.items():
        full = f"{name}.{key}" if name else key
        if key not in hints:
            raise _unknown_key(full, list(hints))
        if dataclasses.is_dataclass(hints[key]):
            found[key] = resolve_section(hints[key], value, full)
        else:
            value = former[key].get(str(value).lower(), value)
            found[key] = coerce(value, hints[key], full)
    return section(**found)


def to_dict(config: Config) -> dict:
    """The config as nested dicts that JSON can hold (tuples become lists)."""
    return json.loads(to_json(config))


def to_json(config: Config) -> str:
    """The config as indented JSON text; the inverse of `from_json`."""
    try:
        return json.dumps(dataclasses.asdict(config), indent=2)
    except TypeError as error:
        raise UserError(
            f"the config's options may hold only numbers, text, lists and dicts: {error}"
        ) from None


def from_json(text: str | dict, file: pathlib.Path | str = "the stored config") -> Config:
    """Reads what `to_json` (text) or `to_dict` (dict) gave; raises UserError if it does not fit.

    ``file`` is where the text is from, for the message.
    """
    if isinstance(text, str):
        try:
            text = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{file} is not JSON ({error}); restore it from a backup") from None
    return resolve(_without_removed(text))


def differences(old: Config, new: Config, *, everything: bool = False) -> list[str]:
    """What makes ``new`` another experiment than ``old``: lines "section.key: old -> new".

    Keys in `settings.CHANGEABLE` may differ between runs of one workdir and are left out unless
    ``everything`` is true. Options are compared after JSON, where tuples and lists are the same.
    """
    lines = []
    for key, _ in settings.knobs():
        if settings.is_changeable(key) and not everything:
            continue
        a, b = (settings.value_at(config, key) for config in (old, new))
        if isinstance(a, dict):
            a, b = json.loads(json.dumps(a)), json.loads(json.dumps(b))
            for name in sorted(a.keys() | b.keys()):
                x, y = a.get(name, "(absent)"), b.get(name, "(absent)")
                free = settings.is_changeable(f"{key}.{name}") and not everything
                if x != y and not free:
                    lines.append(f"{key}.{name}: {x} -> {y}")
        elif a != b:
            lines.append(f"{key}: {a!r} -> {b!r}")
    return lines


def _stored(file: pathlib.Path, stage: str) -> Config:
    if stage:
        raise UserError(f"{file} is the config of one run and has no stages; omit {':' + stage!r}")
    try:
        return from_json(file.read_text(encoding="utf-8"), file)
    except (OSError, UnicodeDecodeError, UserError) as error:
        raise UserError(f"{file} is not the stored config of a run: {error}") from error


def _unknown_key(key: str, known: list[str]) -> UserError:
    """Looks for the same name elsewhere, then a near name in this section, then anywhere."""
    section, _, last = key.rpartition(".")
    everywhere = [name for name, _ in settings.knobs()]
    elsewhere = [name for name in everywhere if name.rpartition(".")[2] == last]
    near = difflib.get_close_matches(last, known, n=1, cutoff=0.6)
    if elsewhere:
        hint = f"; did you mean {elsewhere[0]}?"
    elif near:
        hint = f"; did you mean {section}{'.' if section else ''}{near[0]}?"
    else:
        where = f"section {section!r} has" if section else "there are"
        hint = f"; {where}: {', '.join(known)}"
    return UserError(f"unknown config key {key!r}{hint}")


def _with_new_names(tree: dict) -> dict:
    """Knobs under their old names brought to where they are now."""
    for section, old, new, row in _MOVED:
        part = tree.get(section)
        if not isinstance(part, dict) or part.get("name") != row:
            continue
        options = part.get("options")
        if isinstance(options, dict) and old in options:
            part[new] = options.pop(old)
    return tree


def _without_removed(tree: Any) -> Any:
    """A stored config without the keys that are no knobs any more."""
    if not isinstance(tree, dict):
        return tree
    tree = copy.deepcopy(tree)
    for key in settings.REMOVED:
        section, _, name = key.rpartition(".")
        part = tree.get(section) if section else tree
        if isinstance(part, dict):
            part.pop(name, None)
    return tree


def _plain(config: Any, where: str) -> dict:
    """A private nested dict of a ConfigDict, dict or Config."""
    if isinstance(config, Config):
        return dataclasses.asdict(config)
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    if not isinstance(config, dict):
        raise UserError(
            f"{where}: get_config() must return a ConfigDict (start from configs/common.py), "
            f"not {config!r}"
        )
    return copy.deepcopy(config)


def _override(tree: dict, key: str, value: Any) -> None:
    """Sets a dotted name; below ``options`` any name goes, elsewhere `resolve` checks it."""
    *parents, last = key.split(".")
    node = tree
    for depth, parent in enumerate(parents):
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            above = ".".join(parents[: depth + 1])
            raise UserError(f"unknown config key {key!r}: {above} is a value, not a section")
    if isinstance(value, str) and "options" in parents:
        current = node.get(last)
        # Text stays text where the config file has text, so that a path may look like a number.
        value = value if isinstance(current, str) else parse_literal(value)
    node[last] = value
