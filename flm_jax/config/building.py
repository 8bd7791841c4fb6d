"""One object from a row of a table, with options checked: a loss, sampler, data set, tokenizer."""

import collections.abc
import dataclasses
import inspect
import typing
from typing import Any

from flm_jax import registry
from flm_jax.config.coercion import coerce
from flm_jax.errors import UserError
from flm_jax.registry import Row, nearest
from flm_jax.sampling import SamplingKnobs


def build(
    table: collections.abc.Mapping[str, type[Row]],
    name: str,
    options: collections.abc.Mapping[str, Any],
    what: str,
    **supplied: Any,
) -> Row:
    """The object of that name with options coerced to their annotations, and what is supplied.

    Args:
      name: a row of the table, or "module:class" (`flm_jax.registry`).
      what: the word for the row in messages: "loss", "sampler", "data set", "tokenizer".
      supplied: arguments that the code gives and the user may not set.

    Raises UserError for an unknown name, an unknown, missing or ill-typed option.
    """
    row = registry.find(table, name, what)
    problems, checked = check_options(row, name, options, what, supplied)
    if problems:
        raise UserError("\n".join(problems))
    missing = [
        p.name
        for p in _parameters(row)
        if p.default is p.empty and p.name not in checked and p.name not in supplied
    ]
    if missing:
        raise UserError(f"{what} {name!r} needs options.{missing[0]}; set it in the config")
    return row(**checked, **supplied)


def build_sampler(
    table: collections.abc.Mapping[str, type[Row]],
    name: str,
    options: collections.abc.Mapping[str, Any],
    knobs: SamplingKnobs,
) -> Row:
    """The sampler of that name; knobs that it uses and has as fields come from ``knobs``."""
    row: Any = registry.find(table, name, "sampler")
    values = dataclasses.asdict(knobs)
    own = {p.name for p in _parameters(row)} & row.uses
    taken = {knob: values[knob] for knob in own if knob not in options}
    return build(table, name, {**taken, **options}, "sampler")


def check_options(
    row: Any,
    name: str,
    options: collections.abc.Mapping[str, Any],
    what: str,
    supplied: collections.abc.Container[str] = (),
) -> tuple[list[str], dict[str, Any]]:
    """Returns (problems, options coerced to the annotations of the row's constructor)."""
    known = {p.name: p for p in _parameters(row) if p.name not in supplied}
    hints = _hints(row)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(row).parameters.values())
    problems, checked = [], {}
    for key, value in options.items():
        if key not in known and not takes_any:
            listed = ", ".join(known) or "none"
            problems.append(
                f"{what} {name!r} has no option {key!r}{nearest(key, known)} "
                f"(its options: {listed})"
            )
            continue
        try:
            checked[key] = coerce(value, hints.get(key, Any), f"option {key!r} of {what} {name!r}")
        except UserError as error:
            problems.append(str(error))
    return problems, checked


def _parameters(row: Any) -> list[inspect.Parameter]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p for p in inspect.signature(row).parameters.values() if p.kind in named]


def _hints(row: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(row.__init__ if inspect.isclass(row) else row)
    except (NameError, TypeError):  # annotations that exist only for type checkers
        return {}
