"""Synthetic languages: probabilities against enumeration, samplers against their own law."""

import collections
import itertools
import math
import random

import numpy as np
import pytest

from flm_jax import data, errors
from flm_jax.data import synthetic
from flm_jax.data.synthetic import grammar
from flm_jax.data.synthetic.addition import Addition
from flm_jax.data.synthetic.brackets import Brackets
from flm_jax.data.synthetic.city_pairs import CityPairs
from flm_jax.data.synthetic.grammar import Grammar

SMALL = [
    CityPairs(),
    CityPairs(tuples=3, words=2),
    Addition(),
    Addition(digits=2),
    Brackets(),
    Brackets(length=6, kinds=2),
    Brackets(length=4, kinds=4),
    Grammar(max_words=3),
    Grammar(max_words=4),
]
DEFAULTS = [row() for row in synthetic.LANGUAGES.values()]


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("language", SMALL, ids=str)
def test_enumeration_size_probabilities_and_entropy_agree(language):
    texts = list(language.texts())
    assert len(texts) == len(set(texts)) == language.size
    assert all(map(language.contains, texts))
    logs = np.array([language.log_prob(text) for text in texts])
    assert np.exp(logs).sum() == pytest.approx(1, abs=1e-9)
    assert language.entropy == pytest.approx(-np.sum(np.exp(logs) * logs), abs=1e-9)
    values, multiplicities = language.masses
    assert multiplicities.sum() == language.size
    assert np.dot(values, multiplicities) == pytest.approx(1, abs=1e-9)
    count = str.split if language.tokenizer == "whitespace_words" else list
    assert max(len(count(text)) for text in texts) == language.longest


@pytest.mark.parametrize("language", SMALL, ids=str)
def test_samples_follow_the_distribution(language):
    n = 20 * language.size
    counts = collections.Counter(language.sample(generator(1), n))
    texts = list(language.texts())
    assert counts.keys() <= set(texts)
    expected = np.array([n * math.exp(language.log_prob(text)) for text in texts])
    seen = np.array([counts[text] for text in texts])
    # Rare documents are pooled: chi-square needs a few of each.
    pooled = expected < 5
    expected = np.append(expected[~pooled], expected[pooled].sum())
    seen = np.append(seen[~pooled], seen[pooled].sum())
    square = np.sum((seen - expected) ** 2 / np.maximum(expected, 1e-9))
    degrees = np.count_nonzero(expected) - 1
    assert abs(square - degrees) < 5 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("language", DEFAULTS, ids=lambda language: language.name)
def test_default_samples_are_of_the_language_with_its_mean_log_probability(language):
    texts = language.sample(generator(2), 1000)
    logs = np.array([language.log_prob(text) for text in texts])
    assert np.isfinite(logs).all()
    error = max(logs.std() / math.sqrt(len(logs)), 1e-9)
    assert abs(logs.mean() + language.entropy) < 4 * error
    assert language.sample(generator(2), 1000) == texts != language.sample(generator(3), 1000)


def test_no_word_is_in_two_tuples_and_every_position_has_its_own_words():
    language = CityPairs(tuples=100, words=4)
    words = [text.split(" ") for text in language.texts()]
    assert all(len(one) == 4 for one in words)
    assert len(set(itertools.chain(*words))) == 400
    whole = CityPairs(tuples=4900, words=1)  # the largest there is
    assert len(set(whole.texts())) == 4900
    first, second = words[:2]
    assert not language.contains(" ".join([*first[:3], second[3]]))
    assert not language.contains(" ".join(reversed(first)))


def test_addition_carries_and_is_padded():
    assert Addition().contains("7+5=12") and Addition().contains("0+0=00")
    assert Addition(digits=2).contains("07+95=102")
    assert Addition(digits=3).contains("999+001=1000")
    assert Addition(digits=18).sample(generator(), 2)[0].count("=") == 1
    wrong = ["7+5=11", "7+5=2", "7+5=012", "7-5=02", "7+5=12 ", "+5=05", "", "٧+5=12", "7+5=12\n"]
    assert not any(map(Addition().contains, wrong))
    assert all(eval(t.split("=")[0]) == int(t.split("=")[1]) for t in Addition().texts())


@pytest.mark.parametrize(("pairs", "catalan"), list(enumerate([1, 2, 5, 14, 42, 132, 429], 1)))
def test_bracket_counts_are_catalan_numbers(pairs, catalan):
    assert Brackets(length=2 * pairs).size == catalan
    strings = map("".join, itertools.product("()", repeat=2 * pairs))
    balanced = [s for s in strings if Brackets(length=2 * pairs).contains(s)]
    assert len(balanced) == catalan and sorted(Brackets(2 * pairs).texts()) == sorted(balanced)
    assert Brackets(length=2 * pairs, kinds=2).size == catalan * 2**pairs


def test_brackets_of_kinds_close_in_order():
    language = Brackets(length=4, kinds=2)
    wrong = ["([)]", "(())(", "())(", "((((", "]][[", "()", "()()()", "{}{}", "<><>", "", "(a))"]
    assert not any(map(language.contains, wrong))
    assert all(map(language.contains, ["([])", "[]()", "(())", "[[]]"]))
    strings = map("".join, itertools.product("()[]", repeat=4))
    assert sum(map(language.contains, strings)) == language.size == 8


def test_long_brackets_are_exact_where_floats_would_not_do():
    language = Brackets(length=400, kinds=3)
    texts = language.sample(generator(4), 20)
    assert all(map(language.contains, texts))
    assert language.size > 1e190


def test_rules_are_probabilities_of_31_words():
    symbols = {
        part for rules in grammar.RULES.values() for _, right in rules for part in right.split()
    }
    words = symbols - grammar.RULES.keys()
    assert len(words) == 31
    assert symbols - words | {grammar.START} == grammar.RULES.keys()
    for rules in grammar.RULES.values():
        assert sum(q for q, _ in rules) == pytest.approx(1, abs=1e-12)


def test_agreement_reaches_across_a_relative_clause():
    language = Grammar()
    assert language.contains("the dog that sees two cats sleeps")
    assert language.contains("some small birds that sing alone follow every cat that runs")
    for text in (
        "the dog that sees two cats sleep",
        "two dog sleep",
        "a dogs sleep",
        "the dog sleeps two cats",
        "the dog sees",
        "the dog that sleeps",
        "the dog  sleeps",
        "the dog sleeps ",
        "dog the sleeps",
        "The dog sleeps",
        "",
    ):
        assert not language.contains(text), text


def test_a_sentence_has_the_product_of_its_rules():
    by_hand = 0.5 * (0.85 * 0.7 * 0.3 * 0.4) * (0.35 * 0.5)  # a dog sleeps
    assert grammar.inside(("a", "dog", "sleeps")) == pytest.approx(by_hand)
    language = Grammar()
    expected = math.log(by_hand / language.covered)
    assert language.log_prob("a dog sleeps") == pytest.approx(expected)


def test_longer_limits_cover_more_and_cut_at_the_limit():
    covered = [Grammar(max_words=n).covered for n in (3, 5, 8, 13, 40)]
    assert covered == sorted(covered) and 0.99 < covered[3] < covered[4] <= 1
    text = "the dog that sees two cats sleeps"
    assert Grammar(max_words=7).contains(text) and not Grammar(max_words=6).contains(text)
    # What is cut off is what sampling without a limit gives beyond it.
    lengths = [len(grammar._draw(generator(s), 10**6)) for s in range(3000)]
    share = np.mean(np.array(lengths) <= 5)
    assert abs(share - covered[1]) < 4 * math.sqrt(covered[1] * (1 - covered[1]) / 3000)


def test_every_sentence_has_one_derivation(monkeypatch):
    """Every rule's probability is set to 1: the chart then counts derivations."""
    ones = {
        name: tuple((1.0, right) for _, right in rules) for name, rules in grammar.RULES.items()
    }
    texts = Grammar(max_words=13).sample(generator(5), 200) + list(Grammar(max_words=3).texts())
    assert {grammar.inside(tuple(text.split()), ones) for text in texts} == {1.0}
    ambiguous = {"A": ((0.5, "A A"), (0.5, "a"))}
    assert grammar.inside(("a",) * 3, ambiguous, "A") == pytest.approx(2 * 0.5**5)


def test_corpus_is_deterministic_and_its_splits_differ():
    made = data.load_corpus({"name": "synthetic", "options": {"language": "grammar"}})
    again = synthetic.Synthetic("grammar")
    texts = {split: made.source(split) for split in data.SPLITS}
    assert {split: len(found) for split, found in texts.items()} == {
        "train": 20_000,
        "valid": 4_000,
        "test": 4_000,
    }
    assert all(again.source(split) == found for split, found in texts.items())
    assert all(again.fingerprint(split) == made.fingerprint(split) for split in data.SPLITS)
    assert len({found[:100] for found in texts.values()}) == 3
    other = synthetic.Synthetic("grammar", seed=1)
    assert other.source("train") != texts["train"]
    about = made.describe()
    assert "Grammar(max_words=13), seed 0" in about["kind"] and about["licence"]
    assert about["documents"]["train"] == 20_000


def test_documents_know_their_language():
    corpus = synthetic.Synthetic("brackets", documents=7, held_out=2, length=4, kinds=2)
    assert corpus.language == Brackets(length=4, kinds=2) == corpus.source("valid").language
    assert isinstance(corpus.source("train"), tuple) and len(corpus.source("train")) == 7
    assert corpus.source("train") is corpus.source("train")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"language": "klingon"}, "unknown language 'klingon' .*there are: addition, brackets"),
        (
            {"language": "addition", "digit": 2},
            "'addition' has no option 'digit'; did you mean",
        ),
        ({"language": "addition", "kinds": 2}, "'addition' has no option 'kinds'"),
        ({"language": "addition", "digits": "x"}, "option 'digits' of language 'addition'"),
        ({"language": "addition", "digits": 0}, "digits=0 is impossible; use 1 to 18"),
        ({"language": "brackets", "length": 7}, "length=7 .* pairs; use an even length, .* 8"),
        ({"language": "brackets", "kinds": 5}, "kinds=5 is impossible; use 1 to 4"),
        ({"language": "grammar", "max_words": 2}, "max_words=2 is impossible; use 3 to 40"),
        ({"tuples": 0}, "tuples=0 and words=3 is impossible; .* at most 4900"),
        ({"tuples": 2451, "words": 2}, "tuples=2451 and words=2 is impossible"),
        ({"documents": 0}, "options.documents is 0, but must be at least 1"),
        ({"held_out": -1}, "options.held_out is -1"),
        ({"seed": -1}, "options.seed is -1, but must be at least 0"),
    ],
)
def test_bad_options_get_a_sentence(options, sentence):
    with pytest.raises(errors.UserError, match=sentence):
        data.load_corpus({"name": "synthetic", "options": options})


def test_options_from_the_command_line_are_text():
    options = {"language": "brackets", "length": "8", "kinds": "2", "documents": "5"}
    corpus = data.load_corpus({"name": "synthetic", "options": options})
    assert corpus.language == Brackets(8, 2) and len(corpus.source("train")) == 5


def test_random_corruptions_agree_with_membership_in_the_enumeration():
    rng = random.Random(0)
    for language in SMALL[:7]:
        texts = list(language.texts())
        known, alphabet = set(texts), sorted({c for text in texts for c in text})
        for _ in range(300):
            letters = list(rng.choice(texts))
            edit, place = rng.randrange(3), rng.randrange(len(letters))
            if edit == 0:
                letters[place] = rng.choice(alphabet)
            elif edit == 1:
                del letters[place]
            else:
                letters.insert(place, rng.choice(alphabet))
            assert language.contains("".join(letters)) == ("".join(letters) in known)
