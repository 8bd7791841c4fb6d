"""Values of configs: text and values agree, and all that is wrong is one sentence."""

import dataclasses
import math
import typing

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from properties import lean

from flm_jax import knobs, sampling
from flm_jax.config.coercion import coerce
from flm_jax.errors import UserError
from flm_jax.sampling import Sampling, SamplingKnobs

FINITE = st.floats(allow_nan=False, allow_infinity=False)
# Words that a list on the command line can hold.
WORDS = st.text("abcXYZ_-./:é", min_size=1, max_size=8)
MODES = typing.Literal["fast", "slow"]


def listed(values) -> str:
    return ",".join(map(str, values))


# annotation -> its values and how one is written on the command line (None: as something else)
TYPES = {
    bool: (st.booleans(), str),
    int: (st.integers(), str),
    float: (FINITE, repr),
    str: (st.text(), str),
    MODES: (st.sampled_from(["fast", "slow"]), str),
    int | None: (st.one_of(st.none(), st.integers()), str),
    float | None: (st.one_of(st.none(), FINITE), str),
    tuple[int, ...]: (st.lists(st.integers()).map(tuple), listed),
    tuple[float, ...]: (st.lists(FINITE).map(tuple), str),
    tuple[str, ...]: (st.lists(WORDS).map(tuple), listed),
    tuple[int, ...] | None: (st.one_of(st.none(), st.lists(st.integers()).map(tuple)), str),
    str | tuple[str, ...]: (st.one_of(WORDS, st.just("a,b"), st.lists(WORDS).map(tuple)), None),
    dict: (st.dictionaries(st.text(), st.one_of(FINITE, st.text(), st.booleans())), repr),
}


@hypothesis.settings(lean, max_examples=150)
@hypothesis.given(st.data())
def test_text_and_value_agree_and_stay(data):
    annotation, (values, write) = data.draw(st.sampled_from(list(TYPES.items())))
    value = data.draw(values)
    for given in (value, write(value) if write else value, coerce(value, annotation, "k")):
        found = coerce(given, annotation, "k")
        assert found == value and type(found) is type(value), given
    if isinstance(value, tuple):
        assert coerce(list(value), annotation, "k") == value


@lean
@hypothesis.given(st.integers(-(2**53), 2**53))
def test_numbers_that_are_equal_are_one_number(number):
    for given in (number, float(number), str(float(number)), np.int64(number), np.float64(number)):
        found = coerce(given, int, "k")
        assert found == number and type(found) is int
        assert type(coerce(given, float, "k")) is float
        with pytest.raises(UserError, match="k must be text"):
            coerce(given if not isinstance(given, str) else number, str, "k")


JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([10**400, -(10**400), math.nan, math.inf, object, object(), 1j]),
        st.floats(),
        st.text(max_size=6),
        st.text("{}[](),:'\"1e-aTrue ", max_size=12),
        st.binary(max_size=4),
        st.sampled_from([np.arange(3), np.array("a"), np.float32(math.nan), np.ones((1, 1))]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), inner, max_size=2),
    ),
    max_leaves=4,
)
# What the elements of a tuple and the members of a union are.
CHECKS = {
    bool: lambda v: type(v) is bool,
    int: lambda v: type(v) is int,
    float: lambda v: type(v) is float and math.isfinite(v),
    str: lambda v: isinstance(v, str),
    dict: lambda v: type(v) is dict and all(isinstance(k, str) for k in v),
    type(None): lambda v: v is None,
}


def fits(value, annotation) -> bool:
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return value in arguments
    if typing.get_origin(annotation) is tuple:
        return type(value) is tuple and all(fits(part, arguments[0]) for part in value)
    if arguments:
        return any(fits(value, member) for member in arguments)
    return CHECKS[annotation](value)


@hypothesis.settings(lean, max_examples=300)
@hypothesis.given(JUNK)
def test_anything_becomes_its_type_or_a_sentence(value):
    for annotation in TYPES:
        try:
            found = coerce(value, annotation, "section.key")
        except UserError as error:
            assert "section.key" in str(error)
        else:
            assert fits(found, annotation), (annotation, found)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (True, int),
        (True, int | None),
        (True, float),
        (1, bool),
        (math.nan, float),
        (math.nan, float | None),
        (10**400, float),
        (b"ab", tuple[int, ...]),
        ("{[]: 1}", dict),
        (1, str),
        (1.5, int),
        ({1: 2}, dict),
        (np.arange(2), MODES),
        (np.arange(2), int | None),
    ],
    ids=lambda part: str(part)[:20],
)
def test_wrong_types_are_refused(value, annotation):
    with pytest.raises(UserError, match="^k "):
        coerce(value, annotation, "k")


# Knobs


@st.composite
def limits(draw):
    """(limits, the values that they allow)."""
    low, high = draw(st.floats(-9, 9)), draw(st.floats(-9, 9))
    lower = draw(st.sampled_from(["above", "at_least", None]))
    upper = draw(st.sampled_from(["below", "at_most", None]))
    return {k: v for k, v in ((lower, low), (upper, high)) if k}


ALLOWS = {
    "above": lambda v, bound: v > bound,
    "at_least": lambda v, bound: v >= bound,
    "below": lambda v, bound: v < bound,
    "at_most": lambda v, bound: v <= bound,
}


@hypothesis.settings(lean, max_examples=100)
@hypothesis.given(limits(), st.lists(st.floats(-9, 9)))
def test_a_knob_allows_what_all_its_limits_allow(bounds, values):
    field = knobs.knob(0.0, "", **bounds)
    values += [math.nan, *bounds.values()]  # NaN and the limits themselves
    good = [all(ALLOWS[name](v, bound) for name, bound in bounds.items()) for v in values]
    for value, allowed in zip(values, good, strict=True):
        sentence = knobs.problem("speed", value, field)
        assert (sentence is None) == allowed
        assert allowed or f"speed={value}" in sentence
    assert (knobs.problem("speed", tuple(values), field) is None) == all(good)


values_of = {int: st.integers(0, 9), float: st.floats(0, 9), str: st.text(max_size=9)}
VALUES = {f.name: st.just(f.default) | values_of[type(f.default)] for f in sampling.knob_fields()}
KNOBS = st.builds(SamplingKnobs, **VALUES)


@lean
@hypothesis.given(KNOBS, st.integers(1, 99))
def test_what_has_changed_says_all_about_the_knobs(knobs_, steps):
    changed = knobs_.changed()
    assert SamplingKnobs(**changed) == knobs_
    assert Sampling(**changed, steps=steps) == Sampling(**dataclasses.asdict(knobs_), steps=steps)
    assert all(changed[name] != getattr(SamplingKnobs(), name) for name in changed)


@lean
@hypothesis.given(
    KNOBS, st.booleans(), st.dictionaries(st.sampled_from(["length", "data"]), st.integers())
)
def test_a_stored_description_is_settled_once_and_for_all(knobs_, as_option, others):
    full = {**others, "name": "flow_map", "options": {"own": 1}, **dataclasses.asdict(knobs_)}
    stored = full
    if as_option:
        stored["options"]["gamma"] = stored.pop("gamma")
    before = {**stored, "options": dict(stored["options"])}
    found = sampling.settled(stored)
    assert found == {**others, "name": "flow_map", "options": {"own": 1}, **knobs_.changed()}
    assert sampling.settled(found) == found
    assert stored == before
