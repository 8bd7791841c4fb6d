"""Text statistics against hand counts and closed forms; n-gram samplers against their own law."""

import json
import math
import re
import time
from unittest.mock import Mock

import numpy as np
import pytest

from flm_jax import evals
from flm_jax.evals import base, baselines, text_statistics

BOS, EOS, PAD = 0, 1, 2
LETTERS = "abcdefghijklmnopqrstuvwxyz "


class Letters:
    """A tokenizer of single letters; upper case is spelled in lower case."""

    vocab_size, bos_id, eos_id, pad_id = len(LETTERS) + 3, BOS, EOS, PAD
    specials = {BOS, EOS, PAD}

    def encode(self, text):
        return [3 + LETTERS.index(letter) for letter in text.lower()]

    def decode(self, ids):
        return "".join(LETTERS[i - 3] for i in ids if i >= 3)


def block(text, bos=BOS, eos=EOS):
    """Return [BOS] piece [EOS]; a | in the text is an end of document."""
    inner = [eos if letter == "|" else Letters().encode(letter)[0] for letter in text]
    return np.array([bos, *inner, eos])


def measure(texts, train_rows=(), documents=(), tokenizer=None):
    rows = [block(text) for text in train_rows]
    evaluator = text_statistics.TextStatistics(tokenizer or Letters(), rows, documents)
    return dict(evaluator(np.stack([block(text) for text in texts])))


def random_rows(n=300, length=18, vocab=9, seed=0):
    """Blocks from a chain with structure: the next token depends on the two before it."""
    generator = np.random.default_rng(seed)
    rows = generator.integers(2, vocab, (n, length))
    for i in range(2, length):
        rows[:, i] = 2 + (rows[:, i - 1] + 2 * rows[:, i - 2] + (rows[:, i] < 4)) % (vocab - 2)
    rows[:, 0], rows[:, -1] = BOS, EOS
    return rows


def test_words_at_the_edges_of_a_block_are_not_judged():
    documents = ["the old cat"]
    assert measure(["zz cat old xx"], documents=documents)["words_known"] == 1.0
    assert measure(["zz cat qq xx"], documents=documents)["words_known"] == 0.5
    # Right after an end of document a word is whole, even where the block began with that end.
    assert measure(["|zz the old|"], documents=documents)["words_known"] == 2 / 3
    assert math.isnan(measure(["catcat"], documents=documents)["words_known"])
    assert math.isnan(measure(["zz|xx"], documents=documents)["words_known"])


def test_novelty_counts_complete_documents_only():
    documents = ["the old cat", "a dog", "end"]
    values = measure(["old cat|a dog|a cat|the"], documents=documents)
    assert values["novel"] == 0.5 and values["documents_per_row"] == 2
    assert measure(["|the  old cat|"], documents=documents)["novel"] == 0.0
    assert math.isnan(measure(["the old cat"], documents=documents)["novel"])
    assert measure(["x||||x"], documents=documents)["documents_per_row"] == 0


def test_training_rows_add_words_and_documents_as_the_tokenizer_spells_them():
    text = "|big dog|"
    assert measure([text], documents=["BIG DOG"])["words_known"] == 0
    values = measure([text], train_rows=["x|big dog|x"], documents=["BIG DOG"])
    assert values["words_known"] == 1 and values["novel"] == 0
    # What a training block cuts is no known document.
    assert measure([text], train_rows=["big dog"])["novel"] == 1


def test_one_token_for_both_ends_works_as_in_the_official_data():
    class Same(Letters):
        bos_id = eos_id = BOS

    rows = np.stack([block("xx|a dog|yy", eos=BOS)])
    values = dict(text_statistics.TextStatistics(Same(), rows, [])(rows))
    assert values["documents_per_row"] == 1 and values["novel"] == 0


def test_training_text_itself_is_known_and_not_new():
    documents = ["ab cd", "ef", "gh ij kl"]
    text = "|".join(documents * 5)
    values = measure([text[i : i + 30] for i in range(0, 60, 30)], documents=documents)
    assert values["words_known"] == 1 and values["novel"] == 0


def test_of_a_large_corpus_only_the_beginning_is_read(monkeypatch):
    monkeypatch.setattr(base, "TRAINING_DOCUMENTS", 2)
    documents = iter(["ab cd", "ef", "gh ij kl"])
    text = "|".join(["ab cd", "ef", "gh ij kl"] * 5)
    values = measure([text[i : i + 30] for i in range(0, 60, 30)], documents=documents)
    assert 0 < values["words_known"] < 1 and 0 < values["novel"] < 1
    assert next(documents) == "gh ij kl"


def test_entropies_have_their_closed_forms():
    tokens = np.tile(np.arange(8), (5, 1))
    assert text_statistics.unigram_entropy(tokens) == pytest.approx(math.log(8))
    assert text_statistics.sample_entropy(tokens) == pytest.approx(math.log(8))
    assert text_statistics.bigram_entropy(tokens) == pytest.approx(0, abs=1e-12)
    constant_rows = np.repeat(np.arange(8)[:, None], 6, axis=1)
    assert text_statistics.unigram_entropy(constant_rows) == pytest.approx(math.log(8))
    assert text_statistics.sample_entropy(constant_rows) == 0
    coin = np.random.default_rng(0).integers(0, 2, (200, 500))
    assert text_statistics.bigram_entropy(coin) == pytest.approx(math.log(2), abs=1e-4)
    assert math.isnan(text_statistics.bigram_entropy(np.zeros((3, 1), int)))


def test_bigram_entropy_does_not_pair_tokens_of_different_rows():
    rows = np.array([[0, 1], [2, 3], [0, 1], [2, 3]])
    assert text_statistics.bigram_entropy(rows) == pytest.approx(0, abs=1e-12)
    rows = np.array([[1, 0, 3], [1, 5, 3]])
    assert text_statistics.bigram_entropy(rows) == pytest.approx(0.5 * math.log(2))


def test_bigram_entropy_is_of_the_next_token_given_the_one_before():
    assert text_statistics.bigram_entropy(np.array([[0, 1], [0, 2]])) == pytest.approx(math.log(2))
    assert text_statistics.bigram_entropy(np.array([[1, 0], [2, 0]])) == pytest.approx(0, abs=1e-9)


def test_distinct_rows():
    assert measure(["ab", "ab", "ba", "ab"])["distinct_rows"] == 0.5


@pytest.mark.parametrize("shape", [(5,), (0, 4), (4, 0)])
def test_a_wrong_shape_is_named(shape):
    with pytest.raises(ValueError, match=r"shape \(N, L\)"):
        dict(text_statistics.TextStatistics(Letters(), [], [])(np.zeros(shape, int)))


@pytest.mark.parametrize("name", evals.EVALS)
def test_every_evaluator_describes_each_value_that_it_yields(name):
    rows = np.stack([block("a dog|a cat|xx"), block("x|||dog|yyyyyy")])
    evaluator = evals.EVALS[name](Letters(), rows, ["a dog"])
    names = [key for key, value in evaluator(rows)]
    assert names == [column.key for column in evaluator.columns]
    assert all(column.help and column.title for column in evaluator.columns)


@pytest.mark.parametrize("name", evals.BASELINES)
def test_every_baseline_writes_blocks_reproducibly(name):
    rows = random_rows()
    sample = evals.BASELINES[name](rows, n=50, length=11, seed=3)
    assert sample.shape == (50, 11) and sample.dtype == np.int32
    assert (sample[:, 0] == BOS).all() and (sample[:, -1] == EOS).all()
    assert set(sample[:, 1:-1].ravel()) <= set(rows[:, 1:-1].ravel())
    np.testing.assert_array_equal(sample, evals.BASELINES[name](rows, n=50, length=11, seed=3))
    assert (sample != evals.BASELINES[name](rows, n=50, length=11, seed=4)).any()


def shares(items, size):
    return np.bincount(np.ravel(items), minlength=size) / np.size(items)


def test_unigram_sampler_has_the_training_frequencies_and_no_memory():
    rows = random_rows()
    sample = baselines.unigram(rows, n=4000, length=18, seed=0)[:, 1:-1]
    np.testing.assert_allclose(shares(sample, 9), shares(rows[:, 1:-1], 9), atol=0.006)
    joint = shares(sample[:, 1:] * 9 + sample[:, :-1], 81).reshape(9, 9)
    np.testing.assert_allclose(joint, np.outer(joint.sum(1), joint.sum(0)), atol=0.003)


def test_markov_sampler_has_the_training_transitions():
    rows = random_rows()
    sample = baselines.markov(rows, n=20_000, length=18, seed=0)
    for order in (1, 2):  # P(next | order tokens before), rows weighted by how often they occur
        want, got = (conditional(x[:, 1:-1], order) for x in (rows, sample))
        weight = want.sum(-1, keepdims=True) / want.sum()
        difference = np.abs(normalise(want) - normalise(got)) * weight
        assert difference.sum() < (0.05 if order == 2 else 0.1)
    sample = baselines.markov(rows, n=20_000, length=18, seed=0, order=1)
    want, got = (conditional(x[:, 1:-1], 1) for x in (rows, sample))
    np.testing.assert_allclose(normalise(want), normalise(got), atol=0.03)


def conditional(inner, order, size=9):
    key = np.zeros(inner[:, order:].shape, int)
    for k in range(order + 1):
        key = key * size + inner[:, k : inner.shape[1] - order + k]
    return np.bincount(key.ravel(), minlength=size ** (order + 1)).reshape(-1, size)


def normalise(counts):
    return counts / np.maximum(counts.sum(-1, keepdims=True), 1)


def test_the_first_tokens_of_a_row_follow_the_first_tokens_of_training_rows():
    rows = random_rows(n=500)
    sample = baselines.markov(rows, n=20_000, length=18, seed=0)
    for column in (1, 2):
        got, want = shares(sample[:, column], 9), shares(rows[:, column], 9)
        np.testing.assert_allclose(got, want, atol=0.015)


def test_a_start_is_no_end_of_document_even_with_one_token_for_both():
    row = np.array([[BOS, 5, 6, BOS, 7, 8, BOS]])
    assert (baselines.markov(row, n=50, length=7, seed=0) == row).all()


def test_every_generated_trigram_is_in_training_or_a_documented_back_off():
    rows = np.random.default_rng(1).integers(2, 40, (60, 12))
    rows[:, 0], rows[:, -1] = BOS, EOS
    trigrams = {tuple(row[i : i + 3]) for row in rows for i in range(9)}
    continued = {trigram[:2] for trigram in trigrams}
    bigrams = {tuple(row[i : i + 2]) for row in rows for i in range(10)}
    sample = baselines.markov(rows, n=400, length=20, seed=0)
    kinds = {"seen": 0, "backed off": 0}
    for row in sample:
        for i in range(17):
            trigram = tuple(row[i : i + 3])
            if trigram in trigrams:
                kinds["seen"] += 1
            else:
                kinds["backed off"] += 1
                assert trigram[:2] not in continued
                assert trigram[1:] in bigrams or not any(b[0] == trigram[1] for b in bigrams)
    assert kinds["seen"] > kinds["backed off"] > 0


def test_a_deterministic_text_is_reproduced():
    row = np.array([BOS, 5, 6, 7, 8, 9, EOS])
    assert (baselines.markov(np.stack([row, row]), n=3, length=7, seed=0) == row).all()


def test_a_million_tokens_take_seconds():
    rows = np.random.default_rng(0).integers(2, 1024, (16_000, 64))
    rows[:, 0], rows[:, -1] = BOS, EOS
    start = time.perf_counter()
    baselines.markov(rows, n=1000, length=64, seed=0)
    assert time.perf_counter() - start < 5


def test_unfit_rows_are_refused():
    rows = random_rows(n=4)
    with pytest.raises(ValueError, match="begin with BOS"):
        baselines.unigram(np.where(np.arange(4)[:, None] == 1, 7, rows), 2, 8, 0)
    with pytest.raises(ValueError, match=r"must have shape .*: \(4, 2\)"):
        baselines.unigram(rows[:, :2], 2, 8, 0)
    with pytest.raises(ValueError, match="at least 3 tokens, not 2"):
        baselines.markov(rows, 2, 2, 0)
    with pytest.raises(ValueError, match="order of 9 is too high"):
        baselines.markov(rows * 100_000 // max(1, rows[0, 0]), 2, 8, 0, order=9)


def test_the_table_is_plain_json_and_prints_aligned():
    rows = np.stack([block("a dog|a cat|xx"), block("x|||dog|yyyyyy")])
    evaluator = text_statistics.TextStatistics(Letters(), rows, ["a dog"])
    unjudged = np.stack([block("x" * 14)])
    results = base.table([evaluator], [("FLM, 8 steps", "model", rows), ("data", "data", unjudged)])
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert results["rows"][0]["tokens"] == rows.size and results["rows"][1]["kind"] == "data"
    assert results["rows"][1]["values"]["words_known"] is None
    lines = base.format_table(results).splitlines()
    assert len(lines) == 3 and len({len(line) for line in lines}) == 1
    assert lines[0].split("  ")[-1].endswith("distinct blocks") and "100.0 %" in lines[1]
    assert "–" in lines[2] and lines[1].startswith("FLM, 8 steps")


@pytest.mark.parametrize("width", [1, 40, 60, 80, 100, 500])
def test_the_table_fits_a_terminal_and_nothing_is_cut(width, monkeypatch):
    values = {column.key: 0.125 for column in text_statistics.COLUMNS}
    rows = [{"name": f"FLM, {n} steps", "kind": "model", "values": values} for n in (8, 128)]
    results = {"columns": [vars(column) for column in text_statistics.COLUMNS], "rows": rows}
    text = base.format_table(results, width)
    blocks = [block.splitlines() for block in text.split("\n\n")]
    needed = len("FLM, 128 steps") + 2 + max(len(c.title) for c in text_statistics.COLUMNS)
    assert max(len(line) for block in blocks for line in block) <= max(width, needed)
    for block in blocks:
        assert [line[:14].strip() for line in block] == ["", "FLM, 8 steps", "FLM, 128 steps"]
    titles = [title for block in blocks for title in re.split("  +", block[0].strip())]
    assert titles == [column.title for column in text_statistics.COLUMNS]
    cells = [cell for block in blocks for cell in re.split("  +", block[2])[1:]]
    assert cells == [base.format_value(0.125, vars(c)) for c in text_statistics.COLUMNS]

    monkeypatch.setenv("COLUMNS", str(width))
    assert len(base.format_table(results).splitlines()) == 3  # to a file: side by side
    monkeypatch.setattr("sys.stdout", Mock(isatty=lambda: True))
    assert base.format_table(results) == text
