"""Nonsense in a comparison: each is named by a metric that real text does not have, none is best.

The truth repeats what stood five tokens before, which no pair of tokens tells.
"""

import dataclasses
import functools
import gzip

import numpy as np
import pytest

from flm_jax.errors import UserError
from flm_jax.evals import base, baselines, ngram, nonsense, ranges, verdict
from flm_jax.evals.base import Column, Evaluator
from flm_jax.evals.copying import Copying
from flm_jax.evals.diversity import Diversity
from flm_jax.evals.judged import Judged, Remembering
from flm_jax.evals.sample_entropy import SampleEntropy
from flm_jax.evals.text_statistics import TextStatistics
from flm_jax.tokenizers.characters import Characters
from flm_jax.tokenizers.words import WordsRecipe

LETTERS = Characters("abcdefghijklmnop")
FIRST, BACK, AGAIN = 4, 5, 0.7
CHANCES = np.arange(16, 0, -1.0) / 136
COUNT, LENGTH = 96, 32


class Echo:
    """The judge that knows the law."""

    name, tokenizer, longest = "the echo", LETTERS, 0

    @staticmethod
    def rows(n: int, seed: int) -> np.ndarray:
        draw = np.random.default_rng(seed)
        rows = FIRST + draw.choice(16, p=CHANCES, size=(n, LENGTH))
        rows[:, 0] = LETTERS.bos_id
        again = draw.random((n, LENGTH)) < AGAIN
        for i in range(BACK + 1, LENGTH):
            rows[:, i] = np.where(again[:, i], rows[:, i - BACK], rows[:, i])
        return rows.astype(np.int32)

    @staticmethod
    def score(tokens_NL: np.ndarray) -> np.ndarray:
        tokens = np.asarray(tokens_NL)
        p = np.append(CHANCES, np.full(FIRST, 1e-6))[tokens[:, 1:] - FIRST]
        same = tokens[:, BACK + 1 :] == tokens[:, 1:-BACK]
        p[:, BACK:] = (1 - AGAIN) * p[:, BACK:] + AGAIN * same
        return -np.log(p)


@functools.cache
def text() -> nonsense.Text:
    return nonsense.Text(Echo.rows(3000, seed=1), Echo.rows(6 * COUNT, seed=2))


@functools.cache
def evaluators() -> tuple[Evaluator, ...]:
    judged = Judged(Remembering(Echo()), LETTERS, Echo.rows(COUNT, seed=3))
    copying = Copying(LETTERS, text().train_rows, length=12)
    return judged, Diversity(LETTERS, bleu=False), copying, SampleEntropy()


@functools.cache
def limits() -> dict[str, ranges.Range]:
    return ranges.of(evaluators(), text().real_rows, COUNT, splits=60)


def measured(rows: np.ndarray) -> dict[str, float]:
    return {name: value for evaluator in evaluators() for name, value in evaluator(rows)}


SEEN = {
    "a tiled row": {"distinct_4": "below", "held_out_nats": "above"},
    "shuffled rows": {"judge_nats": "above", "distinct_4": "above"},
    "an n-gram sampler": {"judge_nats": "above"},
    "copies of training rows": {"copied": "above"},
    "greedy n-grams": {"distinct_4": "below", "sample_entropy": "below"},
    "greedy ends": {"distinct_4": "below", "held_out_nats": "above"},
}


@pytest.mark.parametrize("name", nonsense.NONSENSE)
def test_nonsense_is_outside_the_range_of_real_text(name):
    rows = nonsense.NONSENSE[name](text(), COUNT, 0)
    assert rows.shape == (COUNT, LENGTH) and rows.dtype == np.int32
    values = measured(rows)
    sides = ranges.sides(values, limits())
    assert SEEN[name].items() <= sides.items()
    assert len(ranges.outside(values, limits())) == len(sides)


def compared(named: list[tuple[str, str, np.ndarray]]) -> base.Results:
    """A table whose rows say on which side of real text they are."""
    found = base.table(evaluators(), named)
    for row in found["rows"]:
        row["outside"] = ranges.sides(row["values"], limits())
    return found


def test_nonsense_is_never_called_best_though_it_enters_as_a_method():
    real = [("fresh text", "model", Echo.rows(COUNT, seed=5)), ("real", "data", text().real_rows)]
    methods = [(name, "model", rows) for name, _, rows in nonsense.named_rows(text(), COUNT, 0)]
    for one in methods:
        said = verdict.sentences(compared([one, *real])["rows"])
        assert said[-1].startswith("best at the diversity of real text: fresh text"), said
    said = verdict.sentences(compared([*methods, *real])["rows"])
    assert said[-1].startswith("best at the diversity of real text: fresh text")
    copied = "copies of training rows is not called best: 100 % is copied from the training text"
    assert any(line.startswith(copied) for line in said)


def test_what_a_judge_prefers_to_real_text_is_not_called_best():
    """A judge fitted on the text that the n-gram sampler is made of."""
    judge = ngram.fit(text().train_rows, 3, LETTERS)
    asked = Judged(Remembering(judge), LETTERS), Diversity(LETTERS, bleu=False)
    rows = nonsense.ngrams(text(), COUNT, 0)
    sampler = {"judge_nats": 1.0, "distinct_4": dict(asked[1](text().real_rows))["distinct_4"]}
    found = base.table(asked, [("x", "model", rows), ("real", "data", text().real_rows)])["rows"]
    found[0]["values"] |= sampler
    found.insert(1, {**found[1], "name": "other", "kind": "model"})
    assert "best at the diversity of real text: x" in verdict.sentences(found)[-1]
    found[0]["outside"] = {"judge_nats": "below"}
    *_, why, best = verdict.sentences(found)
    assert why == "x is not called best: it is likelier than any real text of its diversity: " + (
        "the judge prefers it"
    )
    assert best.startswith("best at the diversity of real text: other")


@pytest.mark.parametrize("times", [2, 6])
def test_fresh_text_is_outside_at_two_of_a_hundred_metrics(times):
    """The halves are drawn from few rows; without widening fresh text looks strange."""
    real = text().real_rows[: times * COUNT]
    found = ranges.of(evaluators(), real, COUNT, splits=60)
    width = np.sqrt((times + 1) / (times - 1))

    def narrow(limits: ranges.Range) -> ranges.Range:
        middle, half = sum(limits) / 2, (limits.high - limits.low) / 2 / width
        return ranges.Range(middle - half, middle + half)

    narrowed = {name: narrow(one) for name, one in found.items()}
    fresh = [measured(Echo.rows(COUNT, seed=100 + i)) for i in range(60)]
    rate, rate_narrow = (
        np.mean([len(ranges.sides(values, one)) / len(one) for values in fresh])
        for one in (found, narrowed)
    )
    assert 0.0 < rate < 0.06
    assert rate_narrow > (0.1 if times == 2 else rate)


class Constant(Evaluator):
    """Counts its rows; undefined where there are ten."""

    columns = (Column("rows", "rows", ""), Column("ten", "ten", "", unit="share"))

    def __call__(self, tokens_NL):
        yield "rows", float(len(tokens_NL))
        yield "ten", np.nan if len(tokens_NL) == 10 else 0.5


def test_halves_have_as_many_rows_as_the_samples_and_do_not_overlap():
    seen = []

    class Seen(Constant):
        def __call__(self, tokens_NL):
            seen.append({int(x) for x in tokens_NL[:, 0]})
            yield from super().__call__(tokens_NL)

    found = ranges.of([Seen()], np.arange(40).reshape(20, 2), 10, splits=3)
    assert found == {"rows": ranges.Range(10.0, 10.0)}  # the other is undefined somewhere
    assert all(len(one | two) == 20 for one, two in zip(seen[::2], seen[1::2], strict=True))
    assert seen[0] != seen[2]
    with pytest.raises(UserError, match="two halves of 11 rows need 22 .* there are 20; give more"):
        ranges.of([Constant()], np.zeros((20, 2)), 11)


def test_every_metric_outside_is_a_sentence():
    found = {"rows": ranges.Range(1.0, 2.0), "ten": ranges.Range(0.5, 0.5)}
    columns = [dataclasses.asdict(column) for column in Constant.columns]
    assert ranges.outside({"rows": 1.0, "ten": 0.5 + 1e-12, "other": 9.0}, found) == []
    assert ranges.outside({"rows": 0.9, "ten": None}, found, columns) == [
        "rows 0.90 is below, real text 1.00 to 2.00",
        "ten has no value, real text always 50.0 %",
    ]
    assert ranges.sides({"ten": np.nan, "rows": 2.1}, found) == {"rows": "above", "ten": "nothing"}


def test_greedy_rows_by_hand():
    """a b is followed by c twice and by d once; c by the end of the row only."""
    train = np.array([[1, 4, 5, 6, 2], [1, 4, 5, 6, 2], [1, 4, 5, 7, 2], [1, 5, 5, 5, 2]])
    found = baselines.greedy(train, np.array([[1, 4], [1, 5]]), 5)
    np.testing.assert_array_equal(found, [[1, 4, 5, 6, 2], [1, 5, 5, 5, 2]])
    np.testing.assert_array_equal(baselines.greedy(train, np.array([[1]]), 4), [[1, 4, 5, 2]])


def test_on_wikitext(shared):
    """Real text, whose judge is fitted on the same rows as the n-gram sampler."""
    with gzip.open(shared / "data/wikitext-2/valid.txt.gz", "rt") as file:
        lines = [line for line in file if line.strip()]
    words = WordsRecipe().build(lambda: iter(lines))
    ids = np.concatenate([words.encode(line) for line in lines])
    ids = ids[: len(ids) // 63 * 63].reshape(-1, 63)
    rows = np.concatenate([np.full((len(ids), 1), words.bos_id), ids], axis=1).astype(np.int32)
    rows = np.random.default_rng(0).permutation(rows)
    held_out, fresh, real, train = np.split(rows, [48, 96, 96 + 6 * 48])
    judged = Judged(Remembering(ngram.fit(train, 3, words)), words, held_out)
    others = Copying(words, train), TextStatistics(words, train, [])
    asked = [judged, Diversity(words, bleu=False), *others]
    found = ranges.of(asked, real, 48, splits=20)

    def outside(rows):
        values = {name: value for evaluator in asked for name, value in evaluator(rows)}
        return ranges.outside(values, found)

    for name, _, nonsensical in nonsense.named_rows(nonsense.Text(train, real), 48, 0):
        assert outside(nonsensical), name
    assert len(outside(fresh)) <= 2  # of 14; about 2 % each, and few splits
