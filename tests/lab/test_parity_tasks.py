"""The recorded rows and verdicts of tasks are reproduced, and what is wrong in ours is found."""

import pytest

from flm_jax.data.tasks import gsm8k, puzzles, questions
from flm_jax.evals import program_answers
from flm_jax.lab.parity import runner

CASES = {
    "sudoku": 18,
    "tinystories_rows": 2,
    "tinygsm_rows": 24,
    "gsm8k_prompts": 8,
    "gsm8k_scoring": 4,
}


def failures(shared, case: str) -> list[str]:
    rows = runner.run(shared / "golden-refinement", f"plus_data/{case}")
    assert len(rows) == CASES[case] or not all(row.ok for row in rows)
    return [row.quantity for row in rows if not row.ok]


SLOW = ("tinystories_rows", "tinygsm_rows", "gsm8k_prompts")  # they load GPT-2's vocabulary


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES]
)
def test_recorded_rows(shared, case):
    assert failures(shared, case) == []


def later_seeds(right):
    return lambda first, count, clues: right(first + 1, count, clues)


def tokenised_together(right):
    return lambda self, text: (right(self, text)[0], "".join(right(self, text)[1:]))


def half_and_one(right):
    return lambda asked, tokenizer, length, separator: right(
        asked, tokenizer, length + 2, separator
    )


def any_number(right):
    return lambda said, wanted: said is not None


PLANTED = {
    "sudoku": (puzzles, "published", later_seeds),
    "tinygsm_rows": (questions.Questions, "parts", tokenised_together),
    "gsm8k_prompts": (gsm8k, "prompts", half_and_one),
    "gsm8k_scoring": (program_answers, "right", any_number),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", PLANTED)
def test_planted_errors_are_found(shared, case, monkeypatch):
    owner, name, wrong = PLANTED[case]
    monkeypatch.setattr(owner, name, wrong(vars(owner)[name]))
    assert failures(shared, case)
