"""One value to one annotated type, from Python or from the command line, or a clear sentence."""

import ast
import collections.abc
import math
import pathlib
import types
import typing
from typing import Any

from flm_jax.errors import UserError

_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "text", dict: "a dict"}


def coerce(value: Any, annotation: Any, key: str) -> Any:
    """Returns ``value`` as ``annotation``: int for float, list for tuple, and strings are parsed.

    Strings come from the command line: "3e-4", "1e6" for an integer, "true", "1,8,32" for a tuple.
    Annotations that are not plain data (callables, unknown classes) are not checked.
    Raises UserError that names ``key``, the value and what is expected.
    """
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(value, annotation, key)
    if origin is typing.Literal:
        choices = typing.get_args(annotation)
        if not any(isinstance(value, type(choice)) and value == choice for choice in choices):
            raise UserError(f"{key} = {value!r} is not one of {', '.join(map(str, choices))}")
        return value
    if annotation is tuple or origin in (tuple, list, collections.abc.Sequence):
        return _coerce_sequence(value, annotation, key)
    if annotation is dict or origin is dict:
        return _coerce_dict(value, key)
    if annotation in (bool, int, float, str):
        return _coerce_scalar(value, annotation, key)
    if annotation is pathlib.Path and isinstance(value, str):
        return pathlib.Path(value)
    return value


def parse_literal(text: str) -> Any:
    """What a command-line value without a declared type means: a Python literal, else text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text  # TypeError: a list as a key


def _fail(value: Any, expected: str, key: str) -> typing.NoReturn:
    raise UserError(f"{key} must be {expected}, not {value!r} ({type(value).__name__})")


def _coerce_scalar(value: Any, annotation: type, key: str) -> Any:
    expected = _WORDS[annotation]
    if annotation is str:
        if isinstance(value, (str, pathlib.PurePath)):
            return str(value)
    elif annotation is bool:
        words = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
    else:
        number: Any = value
        if isinstance(value, str):
            try:
                number = float(value) if annotation is float else _parse_int(value)
            except ValueError:
                _fail(value, expected, key)
        if hasattr(number, "item") and getattr(number, "ndim", None) == 0:
            number = number.item()  # a numpy scalar
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            if isinstance(number, float) and not math.isfinite(number):
                _fail(value, f"{expected} and finite", key)
            try:
                if annotation is float or number == int(number):
                    return annotation(number)
            except OverflowError:
                _fail(value, "a number that a float can hold", key)
    _fail(value, expected, key)


def _parse_int(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _coerce_sequence(value: Any, annotation: Any, key: str) -> tuple:
    element = (typing.get_args(annotation) or (Any,))[0]
    if isinstance(value, str):
        text = value.strip()
        if text[:1] in "([" and text[-1:] in ")]":
            text = text[1:-1]
        value = [part.strip().strip("'\"") for part in text.split(",") if part.strip()]
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        value = (value,)
    elif not isinstance(value, collections.abc.Sequence) or isinstance(value, (bytes, bytearray)):
        _fail(value, "a list such as 1,8,32", key)
    return tuple(coerce(part, element, f"{key}[{i}]") for i, part in enumerate(value))


def _coerce_dict(value: Any, key: str) -> dict:
    if isinstance(value, str):
        value = parse_literal(value)
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if not isinstance(value, collections.abc.Mapping) or not all(isinstance(k, str) for k in value):
        _fail(value, "a dict with text keys", key)
    return dict(value)


def _coerce_union(value: Any, annotation: Any, key: str) -> Any:
    members = typing.get_args(annotation)
    if type(None) in members and (value is None or isinstance(value, str) and value == "None"):
        return None
    members = [member for member in members if member is not type(None)]
    exact = [m for m in members if isinstance(m, type) and isinstance(value, m)]
    errors = []
    for member in exact or members:
        try:
            return coerce(value, member, key)
        except UserError as error:
            errors.append(error)
    raise errors[0]
