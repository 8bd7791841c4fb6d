"""Answers of generated programs: the published rules, and what a program may not do to us."""

import os
import sys
import time

import pytest

from flm_jax.errors import UserError
from flm_jax.evals import program_answers as programs

DEF = "def simple_math_problem():\n    "


@pytest.mark.parametrize(
    ("reference", "number"),
    [
        ("So she has 7.\n#### 7", "7"),
        ("#### -1,234.50", "-1234.50"),
        ("#### 12.", "12."),
        ("it is 7", None),
        ("####", None),
    ],
)
def test_gold(reference, number):
    assert programs.gold(reference) == number


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Well.\\ndef f():\n    return 1", "def f():\n    return 1"),
        ("def f():\n    return 1<|endoftext|>def g(): pass", "def f():\n    return 1"),
        ("def f():\n    return 1 </s> x <|endoftext|>", "def f():\n    return 1"),
        ("def\n```python\ndef f():\n    return 1\n```", "def f():\n    return 1"),
        ("def f():\n    return 1\n\nand so on", "def f():\n    return 1\n"),
        ("x = 1", "x = 1"),
        ("", ""),
        ("def f(:\n" * 3, ("def f(:\n" * 3).strip()),  # nothing helps
    ],
)
def test_code(text, code):
    assert programs.code(text) == code


def test_at_most_49_lines_are_dropped():
    good = DEF + "return 1"
    assert programs.code(good + "\n(" * 49) == good
    assert programs.code(good + "\n(" * 50) == good + "\n(" * 50


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (True, 1),
        (3, 3),
        (2.5, 2.5),
        (0.1 + 0.2 - 0.3 + 4, 4),
        (float("nan"), None),
        ("cost $1,250.00 or 3", 1250),
        ("-.5 of it", -0.5),
        ("none", None),
        ([1], None),
        (10**30, 10**30),
    ],
)
def test_number(value, number):
    found = programs.number(value)
    assert found == number and type(found) is type(number)


@pytest.mark.parametrize(
    ("said", "gold", "right"),
    [
        (7, "7", True),
        (7, "8", False),
        (5, "0005", True),
        (12, "12.", True),
        (2.5004, "2.5", True),
        (2.502, "2.5", False),
        (2, "2.0009", True),
        (2.0005, "2", True),
        (None, "1", False),
        (1, None, False),
        (1, "1.2.3", False),
    ],
)
def test_right(said, gold, right):
    assert programs.right(said, gold) is right


@pytest.mark.parametrize(
    ("program", "answer"),
    [
        ("import math\n    return math.floor(7.9) + sum(sorted([1, 2]))", 10),
        ("print('x' * 1000)\n    return 'about 4'", 4),  # what it prints is no answer
        ("return [1]", None),
        ("return 1 / 0", None),
        ("import os\n    return 7", None),
        ("return open('/etc/passwd').read()", None),
        ("return len(getattr(int, 'x'))", None),
        ("return 10**5000", None),  # Python writes no such number
        ("return sum(1 for _ in iter(int, 1))", None),
    ],
)
def test_what_a_program_answers(program, answer):
    assert programs.answer(DEF + program) == answer


def test_a_program_ends_in_time():
    start = time.monotonic()
    assert programs.answer(DEF + "while True:\n        pass", seconds=0.5) is None
    assert time.monotonic() - start < 20  # not the half minute that it may take to start


def test_a_program_has_no_more_memory_than_it_may():
    """A list of 160 MB."""
    program = DEF + "return len([0] * 2 * 10**7)"
    assert programs.answer(program, seconds=60, megabytes=512) == 2 * 10**7
    assert programs.answer(program, seconds=60, megabytes=128) is None


def test_a_program_sees_nothing_of_ours(monkeypatch):
    """Out of the builtins by the usual way: it is another process, in an empty folder, and bare."""
    monkeypatch.setenv("FLM_JAX_SECRET", "1")
    escape = (
        "found = [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == '_wrap_close']"
        "\n    os = found[0].__init__.__globals__"
    )
    assert programs.answer(DEF + escape + "\n    return os['getpid']()") != os.getpid()
    assert programs.answer(DEF + escape + "\n    return len(os['listdir']('.'))") == 0
    seen = programs.answer(DEF + escape + "\n    return 'FLM_JAX_SECRET' in os['environ']")
    assert seen == 0
    write = "\n    os['write'](os['open']('x', 66), b'x' * 99)\n    return 1"
    assert programs.answer(DEF + escape + write) is None  # files of no size


def test_score():
    texts = [DEF + "return 3", DEF + "return 4", "no program", DEF + "return 3"]
    verdicts = programs.score(texts, ["#### 3", "#### 3", "#### 3", "three"], workers=2)
    assert [v.right for v in verdicts] == [True, False, False, False]
    assert [v.answer for v in verdicts] == [3, 4, None, None]
    assert verdicts[3].gold is None  # and so it was not run


def test_bad_arguments(monkeypatch):
    with pytest.raises(UserError, match="2 texts for 1 problems"):
        programs.score(["", ""], ["#### 1"])
    with pytest.raises(UserError, match="a time limit of 0 s"):
        programs.answer("", seconds=0)
    with pytest.raises(UserError, match="a memory limit of 1 MB is too small"):
        programs.answer("", megabytes=1)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UserError, match="cannot limit what a program takes"):
        programs.answer("")
