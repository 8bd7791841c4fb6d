"""A knob: a dataclass field that carries its meaning, its limits and its default."""

import dataclasses
from typing import Any


def knob(default: Any, meaning: str, **limits: Any) -> Any:
    """A dataclass field with its meaning and limits.

    Limits: ``above``, ``at_least``, ``below``, ``at_most`` (numbers), ``choices`` (a tuple) and
    ``nonempty`` (tuples). For a tuple field the limits hold for each element. ``former`` says what
    values of earlier versions mean, by their text in small letters.

    For options of commands (`flm_jax.cli.options`) also: ``word`` (given without its name),
    ``needed`` (the sentence when it is missing), ``repeated`` (of a tuple: it can be given several
    times) and ``each`` (of a dict: the fields of its values).
    """
    metadata = {"meaning": meaning, "limits": limits}
    if isinstance(default, dict):  # a dict cannot be hashed, so it takes part in == but not in hash
        return dataclasses.field(default_factory=default.copy, hash=False, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def problem(name: str, value: Any, field: dataclasses.Field) -> str | None:
    """Why a value is outside the limits of its knob, one sentence; None if it is not."""
    limits = field.metadata["limits"]
    if limits.get("nonempty") and not value:
        default: Any = field.default
        example = ",".join(map(str, default))
        return f"{name} is empty; give at least one value, for example {name}={example}"
    for part in value if isinstance(value, tuple) else (value,):
        shown = f"{name}={part}" if part is value else f"{part} in {name}"
        choices = limits.get("choices")
        if choices and part not in choices:
            return f"{shown} is not known; use {' or '.join(choices)}"
        # Written so that NaN fails every comparison.
        if "above" in limits and not part > limits["above"]:
            return f"{shown} must be greater than {limits['above']}"
        if "at_least" in limits and not part >= limits["at_least"]:
            return f"{shown} must be at least {limits['at_least']}"
        if "below" in limits and not part < limits["below"]:
            return f"{shown} must be below {limits['below']}"
        if "at_most" in limits and not part <= limits["at_most"]:
            return f"{shown} must be at most {limits['at_most']}"
    return None
