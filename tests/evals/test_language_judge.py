"""A synthetic language as a judge: a distribution over rows that is exact for its documents."""

import itertools
import math

import numpy as np
import pytest

from flm_jax.data.synthetic import Documents
from flm_jax.data.synthetic.brackets import Brackets
from flm_jax.evals import language_judge
from flm_jax.tokenizers.characters import Characters

LANGUAGE = Brackets(4, 1)  # (()) and ()()
TOKENS = Characters("()")
BOS, EOS, PAD = TOKENS.bos_id, TOKENS.eos_id, TOKENS.pad_id
DOCUMENTS = Documents(list(LANGUAGE.texts()), LANGUAGE)
LENGTH = 7


@pytest.fixture(name="judge")
def fixture_judge():
    return language_judge.of_documents(DOCUMENTS, "one_per_row", TOKENS)


def row(text, length=LENGTH):
    ids = [BOS, *TOKENS.encode(text), EOS]
    return ids + [PAD] * (length - len(ids))


def test_the_probabilities_of_all_rows_add_up_to_one(judge):
    every = np.array(list(itertools.product(range(TOKENS.vocab_size), repeat=LENGTH - 1)))
    rows = np.concatenate([np.full((len(every), 1), BOS), every], axis=1)
    assert np.exp(-judge.score(rows).sum(axis=1)).sum() == pytest.approx(1.0)


def test_a_document_costs_its_exact_log_probability_and_anything_else_much_more(judge):
    nats = judge.score(np.array([row("(())"), row("()()"), row("((()"), row("()")]))
    assert nats.shape == (4, LENGTH - 1)
    exact = math.log(2) + 1e-3
    assert nats.sum(axis=1)[:2] == pytest.approx([exact] * 2, abs=1e-4)
    anything = (LENGTH - 1) * math.log(TOKENS.vocab_size) + math.log(1e3)
    assert nats.sum(axis=1)[2:] == pytest.approx([anything] * 2)
    assert "brackets" in judge.name and judge.longest == 0


def test_only_a_language_with_one_document_a_row_is_a_judge():
    assert language_judge.of_documents(DOCUMENTS, "wrapped", TOKENS) is None
    assert language_judge.of_documents(list(DOCUMENTS), "one_per_row", TOKENS) is None
