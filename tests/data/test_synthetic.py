"""Synthetic languages: probabilities against enumeration, samplers against their own law."""

import collections
import itertools
import math
import random

import numpy as np
import pytest

from flm_jax import data, errors
from flm_jax.data import synthetic
from flm_jax.data.synthetic import grammar, large_grammar
from flm_jax.data.synthetic.addition import Addition
from flm_jax.data.synthetic.addition3 import Addition3
from flm_jax.data.synthetic.brackets import Brackets, Brackets32
from flm_jax.data.synthetic.city_pairs import CityPairs
from flm_jax.data.synthetic.derivations import Derivations
from flm_jax.data.synthetic.grammar import Grammar
from flm_jax.data.synthetic.large_grammar import LargeGrammar

SMALL = [
    CityPairs(),
    CityPairs(tuples=3, words=2),
    Addition(),
    Addition(digits=2),
    Addition3(digits=1),
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
    texts = language.sample(generator(2), 500)
    logs = np.array([language.log_prob(text) for text in texts])
    assert np.isfinite(logs).all()
    error = max(logs.std() / math.sqrt(len(logs)), 1e-9)
    assert abs(logs.mean() + language.entropy) < 4 * error
    assert language.sample(generator(2), 500) == texts != language.sample(generator(3), 500)


@pytest.mark.parametrize(
    "language",
    [
        Addition3(digits=1),
        Addition3(digits=2),
        Brackets(length=2),
        Brackets(length=10, kinds=2),
        Brackets(length=8, kinds=3),
        Grammar(max_words=4),
    ],
    ids=str,
)
def test_laws_of_features_are_what_enumeration_gives(language):
    expected = collections.defaultdict(collections.Counter)
    for text in language.texts():
        for name, value in language.features(text):
            expected[name][value] += math.exp(language.log_prob(text))
    assert expected.keys() == language.laws.keys()
    for name, law in language.laws.items():
        total = sum(expected[name].values())
        assert sum(law.values()) == pytest.approx(1)
        assert expected[name].keys() <= law.keys()
        found = {value: expected[name][value] / total for value in law}
        assert found == pytest.approx(dict(law), abs=1e-9), name


@pytest.mark.parametrize("language", [Addition3(), Brackets32(), LargeGrammar()], ids=str)
def test_samples_of_large_languages_have_their_laws(language):
    found = collections.defaultdict(collections.Counter)
    for text in language.sample(generator(6), 4000):
        for name, value in language.features(text):
            found[name][value] += 1
    for name, law in language.laws.items():
        total = found[name].total()
        for value, p in law.items():  # words of one sentence go together a little: 6, not 5
            error = math.sqrt(p * (1 - p) / total) + 1 / total
            assert abs(found[name][value] / total - p) < 6 * error, (name, value)


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


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_a_tenth_of_the_operand_pairs_is_kept_back(digits):
    language = Addition3(digits)
    limit = 10**digits
    a_N, b_N = (x.ravel() for x in np.mgrid[:limit, :limit])
    image = language._forward(a_N, b_N)
    assert len(np.unique(image[0] * limit + image[1])) == limit**2  # a permutation
    for found, given in zip(language._backward(*image), (a_N, b_N), strict=True):
        np.testing.assert_array_equal(found, given)
    kept_back = image[0] < limit // 10
    assert kept_back.sum() == limit**2 // 10
    if digits == 3:  # it looks like chance: for every digit at every place of either operand
        for operand in (a_N, b_N):
            for place in (1, 10, 100):
                counts = np.bincount(operand[kept_back] // place % 10, minlength=10)
                assert np.max(np.abs(counts - 10_000)) < 5 * math.sqrt(10_000)
    known = [language._text(int(a), int(b)) for a, b in zip(a_N[:300], b_N[:300], strict=True)]
    assert [language.is_held_out(text) for text in known] == kept_back[:300].tolist()


def test_training_never_sees_what_is_kept_back_and_the_rest_is_nothing_else():
    corpus = synthetic.Synthetic("addition3", documents=3000, held_out=1000)
    language = corpus.language
    held_out = {split: [language.is_held_out(text) for text in corpus.source(split)]
                for split in data.SPLITS}  # fmt: skip
    assert not any(held_out["train"]) and all(held_out["valid"]) and all(held_out["test"])
    assert all(map(language.contains, corpus.source("train") + corpus.source("valid")))
    share = np.mean([language.is_held_out(text) for text in language.sample(generator(), 4000)])
    assert abs(share - language.held_out_share) < 5 * math.sqrt(0.09 / 4000)
    assert len(set(corpus.source("train"))) > 2980 and language.size == 10**6


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


def test_brackets32_have_three_kinds_and_too_many_texts_to_know():
    language = Brackets32()
    assert language.size == 35_357_670 * 3**16 and language.longest == 32
    assert set("".join(language.sample(generator(), 20))) == set("([{)]}")


@pytest.mark.parametrize(("rows", "count"), [(grammar.RULES, 31), (large_grammar.RULES, 293)])
def test_rules_are_probabilities_of_so_many_words(rows, count):
    symbols = {part for rules in rows.values() for _, right in rules for part in right.split()}
    words = symbols - rows.keys()
    assert len(words) == count
    assert symbols - words | {"SENTENCE"} == rows.keys()
    for rules in rows.values():
        assert sum(q for q, _ in rules) == pytest.approx(1, abs=1e-12)


def test_only_a_determiner_is_a_word_of_two_kinds():
    kinds = collections.Counter(
        right
        for rules in large_grammar.RULES.values()
        for right in {right for _, right in rules}
        if right not in large_grammar.RULES and " " not in right
    )
    assert [word for word, count in kinds.items() if count > 1] == ["the"]


def test_the_large_grammar_has_as_many_short_sentences_as_there_are_words_for_them():
    nouns, verbs = (
        sum(name == symbol for name, *_ in LargeGrammar.derivations.flat)
        for symbol in ("N-S", "I-S")
    )
    language = LargeGrammar(max_words=3)  # DET N I: three determiners, four in the plural
    assert language.size == 7 * nouns * verbs == len(set(language.texts()))


def test_the_large_grammar_agrees_across_everything_between():
    language = LargeGrammar()
    for text in (
        "the dog that two cats see sleeps",
        "the dogs near a tree sleep",
        "both the dog and the cats sleep and a bird sings",
        "the girls say that if the boy sleeps then some dogs run often",
        "if if a dog runs then a cat runs then a very small bird sings",
        "a king that says that the queen sleeps hopes that the princesses dance",
    ):
        assert language.contains(text), text
    for text in (
        "the dog that two cats sees sleeps",
        "the dog that two cats see sleep",
        "the dogs near a tree sleeps",
        "both the dog and the cat sleeps",
        "the dog sleeps and a bird sings and a cat runs",
        "if a dog runs a cat runs",
        "the girls say that sleeps",
        "the dog near a tree that falls sleeps",
        "the dog near a tree near a house sleeps",
        "the dog that the cat sees the bird sleeps",
        "the dog sleeps .",
    ):
        assert not language.contains(text), text


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
    language = Grammar()
    assert language.derivations.inside(("a", "dog", "sleeps")) == pytest.approx(by_hand)
    expected = math.log(by_hand / language.covered)
    assert language.log_prob("a dog sleeps") == pytest.approx(expected)


def test_longer_limits_cover_more_and_cut_at_the_limit():
    covered = [Grammar(max_words=n).covered for n in (3, 5, 8, 13, 40)]
    assert covered == sorted(covered) and 0.99 < covered[3] < covered[4] <= 1
    text = "the dog that sees two cats sleeps"
    assert Grammar(max_words=7).contains(text) and not Grammar(max_words=6).contains(text)
    # What is cut off is what sampling without a limit gives beyond it.
    draw = Grammar.derivations.draw
    lengths = [len(draw(generator(s), 10**6) or ()) for s in range(3000)]
    share = np.mean(np.array(lengths) <= 5)
    assert abs(share - covered[1]) < 4 * math.sqrt(covered[1] * (1 - covered[1]) / 3000)


@pytest.mark.parametrize("row", [Grammar, LargeGrammar])
def test_every_sentence_has_one_derivation(row):
    """Every rule's probability is set to 1: the chart then counts derivations."""
    rules = row.derivations.rules
    ones = {name: tuple((1.0, right) for _, right in rules[name]) for name in rules}
    texts = row().sample(generator(5), 200) + list(itertools.islice(row(3).texts(), 100))
    texts.append("if the dog sleeps then a cat that every bird sees runs" * (row is LargeGrammar))
    counts = Derivations(ones, "SENTENCE")
    assert {counts.inside(tuple(text.split())) for text in texts if text} == {1.0}
    ambiguous = Derivations({"A": ((0.5, "A A"), (0.5, "a"))}, "A")
    assert ambiguous.inside(("a",) * 3) == pytest.approx(2 * 0.5**5)


def test_a_grammar_in_closed_form():
    """A -> a A | b: q^(n-1)·(1-q) for n words, n - 1 uses of the first rule."""
    tables = Derivations({"A": ((0.3, "a A"), (0.7, "b"))}, "A").tables(6)
    n = np.arange(1, 7)
    mass = 0.3 ** (n - 1) * 0.7
    np.testing.assert_allclose(tables.mass[1:], mass)
    assert tables.counts == [0, 1, 1, 1, 1, 1, 1]
    np.testing.assert_allclose(tables.uses[1:], np.stack([(n - 1) * mass, mass], axis=1))


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
        ({"language": "klingon"}, "unknown language 'klingon' .*there are: addition, addition3"),
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
        ({"language": "large_grammar", "max_words": 41}, "'large_grammar' with max_words=41"),
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
