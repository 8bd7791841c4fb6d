"""Diversity between samples, copying, and the n-gram judge: closed forms and fixtures that lose."""

import importlib.util
import itertools
import math

import numpy as np
import pytest

from flm_jax.errors import UserError
from flm_jax.evals import diversity, ngram
from flm_jax.evals.copying import Copying, run_hashes
from flm_jax.evals.diversity import Diversity, distinct
from flm_jax.tokenizers.characters import Characters

V = 12
LETTERS = Characters("abcdefgh")  # with four special tokens: V


def rows(n=100, length=20, seed=0):
    """Rows of a Markov chain over 1..9 behind BOS 0: successors are +1, +2 or +3 (mod 9)."""
    generator = np.random.default_rng(seed)
    jumps = generator.choice([1, 2, 3], p=[0.6, 0.3, 0.1], size=(n, length - 1))
    start = generator.integers(9, size=(n, 1))
    body = (start + np.cumsum(jumps, axis=1)) % 9 + 1
    return np.concatenate([np.zeros((n, 1), int), body], axis=1)


def test_the_ngram_model_is_a_distribution_whatever_it_has_seen():
    model = ngram.fit(rows(30, 6), 3, LETTERS)
    for prefix in ([0, 1, 2], [0, 11, 10], [5, 5, 5]):  # seen, never seen, not a row's start
        continued = np.array([[*prefix, token] for token in range(V)])
        p = np.exp(-model.score(continued)[:, -1])
        assert p.sum() == pytest.approx(1.0) and (p > 0).all()


def test_witten_bell_by_hand():
    """Tokens after BOS: a a b; a a b. Successors of a: a and b, once each per row."""
    model = ngram.fit(np.array([[0, 1, 1, 2], [0, 1, 1, 2]]), 2, Characters(""))
    uniform = 1 / 4
    unigram = {1: (4 + 2 * uniform) / (6 + 2), 2: (2 + 2 * uniform) / (6 + 2)}
    after_a = {1: (2 + 2 * unigram[1]) / (4 + 2), 2: (2 + 2 * unigram[2]) / (4 + 2)}
    after_bos = (2 + 1 * unigram[1]) / (2 + 1)
    expected = -np.log([after_bos, after_a[1], after_a[2]])
    np.testing.assert_allclose(model.score(np.array([[0, 1, 1, 2]]))[0], expected)
    # a context that never occurred: as if it were shorter
    np.testing.assert_allclose(model.score(np.array([[0, 3, 1]]))[0, 1], -np.log(unigram[1]))


def test_the_ngram_model_finds_the_entropy_rate_of_a_chain():
    p = np.array([0.6, 0.3, 0.1])
    rate = -(p * np.log(p)).sum()
    found = ngram.fit(rows(2000), 2, LETTERS).score(rows(500, seed=1))[:, 1:].mean()
    assert found == pytest.approx(rate, abs=0.01)


def test_held_out_text_is_unlikely_under_collapsed_samples():
    held_out, fresh = rows(200, seed=5), rows(100, seed=6)
    collapsed = np.repeat(fresh[:1], 100, axis=0)
    good, bad = (ngram.fit(x, 3, LETTERS).score(held_out).mean() for x in (fresh, collapsed))
    assert bad > good + 0.5


def test_long_ngrams_over_a_large_vocabulary_are_numbered():
    tokens = np.array([[50000, 50256, 49999, 50001, 50256, 7]] * 2)
    model = ngram.fit(tokens, 5, Characters("".join(map(chr, range(256, 50509)))))
    found = np.exp(-model.score(tokens)[0])
    assert (found > 2 / 3).all()  # each context has one successor, seen twice
    with pytest.raises(UserError, match="order 0"):
        ngram.fit(rows(), 0, LETTERS)


def test_distinct_counts_what_a_list_counts():
    tokens = rows(7, 9)
    for n in (1, 2, 4):
        grams = [
            tuple(row[i : i + n]) for row in tokens.tolist() for i in range(1, len(row) - n + 1)
        ]
        assert distinct(tokens, n) == len(set(grams)) / len(grams)
    assert math.isnan(distinct(tokens, 9))


def test_groups_have_one_size_and_fewer_samples_have_no_value():
    evaluate = Diversity(LETTERS, group=10)
    one, three = rows(10), rows(30)
    parts = [distinct(three[i : i + 10], 4) for i in (0, 10, 20)]
    assert dict(evaluate(three))["distinct_4"] == pytest.approx(np.mean(parts))
    assert dict(evaluate(one))["distinct_4"] == distinct(one, 4)
    assert math.isnan(dict(evaluate(one[:9]))["distinct_4"])
    assert [c.key for c in evaluate.columns] == list(dict(evaluate(one)))
    with pytest.raises(UserError, match="group=1"):
        Diversity(LETTERS, group=1)


def test_a_tiled_row_has_its_entropy_and_no_diversity():
    fresh = rows(48)
    tiled = np.repeat(fresh[:1], 48, axis=0)
    assert distinct(tiled, 4) == pytest.approx(distinct(fresh[:1], 4) / 48)
    assert distinct(tiled, 4) < 0.05 < distinct(fresh, 4)


@pytest.mark.skipif(not importlib.util.find_spec("sacrebleu"), reason="sacrebleu is not installed")
def test_self_bleu_of_equal_and_of_foreign_texts():
    assert diversity.self_bleu(["one two three four five"] * 3) == pytest.approx(1.0)
    foreign = ["a b c d e", "f g h i j", "k l m n o"]
    assert diversity.self_bleu(foreign) < 0.2
    evaluate = Diversity(LETTERS, group=4)
    assert dict(evaluate(rows(4)))["self_bleu"] < 1
    assert dict(evaluate(np.repeat(rows(1), 4, axis=0)))["self_bleu"] == pytest.approx(1.0)


def test_copied_runs_are_found_and_only_those():
    train = rows(200, seed=1)
    evaluate = Copying(LETTERS, train, length=8)
    assert dict(evaluate(train[:5]))["copied"] == 1.0
    other = (train[:5] % 9) + 2  # ids that occur nowhere else
    assert dict(evaluate(np.where(other > 9, 11, 10)))["copied"] == 0.0
    half = train[:1].copy()
    half[0, 10] = 11  # of the 12 runs of 8 tokens, those over position 10 are new: 8 of them
    assert dict(evaluate(half))["copied"] == pytest.approx(1 - 8 / 12)
    assert math.isnan(dict(Copying(LETTERS, train, length=30)(train))["copied"])
    with pytest.raises(UserError, match="length=0"):
        Copying(LETTERS, train, length=0)


def test_hashes_tell_orders_and_repetitions_apart():
    every = np.array([[0, *p] for p in itertools.product(range(V), repeat=3)])
    assert len(np.unique(run_hashes(every, 3))) == V**3
