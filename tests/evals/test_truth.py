"""The truth evaluator: closed forms, enumeration, strict rows, and one document per row."""

import itertools
import math

import numpy as np
import pytest
from recipes import make_tokenizer

from flm_jax import data, errors, evals
from flm_jax.data import synthetic, wrap
from flm_jax.data.synthetic.addition import Addition
from flm_jax.data.synthetic.addition3 import Addition3
from flm_jax.data.synthetic.brackets import Brackets, Brackets32
from flm_jax.data.synthetic.city_pairs import CityPairs
from flm_jax.data.synthetic.grammar import Grammar
from flm_jax.data.synthetic.large_grammar import LargeGrammar
from flm_jax.evals import base, truth

PAD, BOS, EOS = 0, 1, 2
LENGTHS = {"city_pairs": 5, "addition": 8, "brackets": 14, "grammar": 16, "addition3": 14}
LENGTHS |= {"brackets32": 34, "large_grammar": 19}
LARGE = [Addition3(), Brackets32(), LargeGrammar()]
FINITE = [CityPairs(), Addition(), Brackets(), Brackets(8, 2), Grammar(3)]


def load(language, folder, length=0, **options):
    """The data of a language in rows of one document each."""
    section = {
        "name": "synthetic",
        "length": length or LENGTHS[language],
        "packing": "one_per_row",
        "options": {"language": language, "documents": 3000, "held_out": 500, **options},
    }
    return data.load_data(section, {"name": synthetic.LANGUAGES[language].tokenizer}, folder)


# One document per row


def test_rows_hold_one_document_and_padding():
    (rows_NL,) = wrap.one_per_row([[5, 6], [], [7, 8, 9]], 5, BOS, EOS, PAD)
    assert rows_NL.tolist() == [[1, 5, 6, 2, 0], [1, 2, 0, 0, 0], [1, 7, 8, 9, 2]]
    assert rows_NL.dtype == np.int32
    assert list(wrap.one_per_row([], 5, BOS, EOS, PAD)) == []


def test_how_rows_are_buffered_does_not_show(monkeypatch):
    documents = [list(range(3, 3 + n % 7)) for n in range(50)]
    (whole,) = wrap.one_per_row(documents, 8, BOS, EOS, PAD)
    monkeypatch.setattr(wrap, "_BUFFER", 30)
    parts = list(wrap.one_per_row(iter(documents), 8, BOS, EOS, PAD))
    assert len(parts) > 10
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert [wrap.split_row(row[row != PAD], BOS, EOS) for row in whole] == [
        [document] if document else [] for document in documents
    ]


@pytest.mark.parametrize("language", LENGTHS)
def test_packed_rows_are_the_documents_and_wrapped_ones_are_not(language, tmp_path):
    loaded = load(language, tmp_path)
    rows_NL, texts = loaded.rows["train"][:], loaded.corpus.source("train")
    assert truth.documents(rows_NL, loaded.tokenizer) == list(texts)
    assert len(rows_NL) == 3000 and loaded.tokenizer.vocab_size < 300
    assert len(np.unique(rows_NL[:, -1])) == 1  # the n-gram baselines ask for it
    values = truth.measure(loaded.corpus.language, texts[:500])
    assert values["valid"] == 1
    args = (loaded.corpus, loaded.tokenizer, "train", LENGTHS[language] + 2, tmp_path)
    wrapped = data.pack(*args)[:]
    assert wrapped.shape != rows_NL.shape
    found = truth.documents(wrapped, loaded.tokenizer)
    assert truth.measure(loaded.corpus.language, found)["valid"] == 0
    assert data.pack(*args)[:].tolist() != data.pack(*args, packing="one_per_row")[:].tolist()


def test_packing_mistakes_get_a_sentence(tmp_path):
    sentence = r"document \d+ \('\(\(?\)?.*' of the split 'train'\) has 12 tokens, too many for a "
    sentence += r"row of length 13 .*; set data.length to 14 or more, or data.packing=wrap"
    with pytest.raises(errors.UserError, match=sentence):
        load("brackets", tmp_path, length=13)
    assert not list((tmp_path / "rows").iterdir())
    corpus = synthetic.Synthetic("brackets", length=100, documents=5)
    letters = make_tokenizer({"name": "characters"}, lambda: ["()"])
    with pytest.raises(errors.UserError, match=r"\('[()]{40} \.\.\.' of the split"):
        data.pack(corpus, letters, "train", 50, tmp_path, packing="one_per_row")
    with pytest.raises(errors.UserError, match="packing 'rows' is not known; use wrap or one_per"):
        data.pack(corpus, letters, "train", 200, tmp_path, packing="rows")
    with pytest.raises(errors.UserError, match="drop_remainder_every=9 has no meaning .* set it"):
        data.pack(corpus, letters, "train", 200, tmp_path, 9, packing="one_per_row")
    with pytest.raises(errors.UserError, match="length is 2, .* at least 3"):
        list(wrap.one_per_row([[3]], 2, BOS, EOS, PAD))

    class Unpadded:
        name, pad_id = "gpt2", None

    with pytest.raises(errors.UserError, match="'gpt2' has no padding token; use data.packing=wr"):
        data.pack(corpus, Unpadded(), "train", 200, tmp_path, packing="one_per_row")


# Rows to documents


@pytest.mark.parametrize(
    ("row", "document"),
    [
        ([1, 4, 5, 2, 0, 0], "()"),
        ([1, 4, 5, 4, 5, 2], "()()"),
        ([1, 2, 0, 0, 0, 0], ""),
        ([4, 4, 5, 2, 0, 0], None),  # no BOS
        ([1, 4, 5, 4, 5, 4], None),  # no EOS
        ([1, 4, 5, 0, 0, 0], None),
        ([1, 4, 5, 2, 0, 2], None),  # a second EOS
        ([1, 4, 5, 2, 4, 5], None),  # text behind the end
        ([1, 4, 5, 2, 1, 0], None),
        ([1, 4, 0, 5, 2, 0], None),  # padding inside, invisible in the text
        ([1, 1, 4, 5, 2, 0], None),
        ([1, 4, 3, 2, 0, 0], "(\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_rows_are_read_strictly(row, document):
    letters = make_tokenizer({"name": "characters"}, lambda: ["()"])
    assert truth.documents(np.array([row]), letters) == [document]


# Numbers


@pytest.mark.parametrize("language", FINITE, ids=str)
def test_the_truth_itself_is_perfect(language):
    """Where every document has a whole number of copies in proportion to its probability."""
    if isinstance(language, Grammar):
        logs = {text: language.log_prob(text) for text in language.texts()}
        samples = [t for t, log in logs.items() for _ in range(round(1e7 * math.exp(log)))]
        tolerance = 1e-4
    else:
        samples, tolerance = list(language.texts()) * 3, 1e-12
    values = truth.measure(language, samples)
    assert values["valid"] == values["coverage"] == 1
    assert values["total_variation"] == pytest.approx(0, abs=tolerance)
    assert values["log_likelihood"] == pytest.approx(-values["truth_entropy"], abs=1e-3)
    assert list(values) == [column.key for column in truth.columns_for(language)]


def test_by_hand_with_invalid_samples():
    first, second, *_ = CityPairs(tuples=4).texts()
    values = truth.measure(CityPairs(tuples=4), [first] * 3 + [second, "x y z", None])
    # Shares 3/4, 1/4, 0, 0 against 1/4 each.
    assert values["valid"] == pytest.approx(4 / 6)
    assert values["total_variation"] == pytest.approx(0.5)
    assert values["coverage"] == 0.5 and values["distinct"] == 0.5
    assert values["log_likelihood"] == pytest.approx(-math.log(4))
    assert values["truth_entropy"] == pytest.approx(math.log(4))


def test_total_variation_counts_what_is_missing():
    language = Grammar(max_words=4)
    text = "the dog sleeps"
    values = truth.measure(language, [text] * 5)
    assert values["total_variation"] == pytest.approx(1 - math.exp(language.log_prob(text)))
    assert values["coverage"] == pytest.approx(1 / language.size)
    assert values["log_likelihood"] == pytest.approx(language.log_prob(text))


def test_without_valid_samples_little_is_known():
    values = truth.measure(Addition(), ["1+1=03", None, ""])
    assert values["valid"] == 0 and values["truth_entropy"] == pytest.approx(math.log(100))
    unknown = values.keys() - {"valid", "truth_entropy"}
    assert len(unknown) == 5 and all(math.isnan(values[key]) for key in unknown)
    with pytest.raises(ValueError, match="no samples"):
        truth.measure(Addition(), [])


@pytest.mark.parametrize("language", [Grammar(), *LARGE], ids=str)
def test_large_languages_have_a_distance_of_features_and_a_likelihood(language):
    samples = language.sample(np.random.default_rng(0), 500)
    values = truth.measure(language, samples)
    assert list(values) == [column.key for column in truth.columns_for(language)]
    assert "total_variation" not in values and "coverage" not in values
    assert values["log_likelihood"] == pytest.approx(-language.entropy, abs=0.6)
    assert values["valid"] == 1 and 0.5 < values["distinct"] <= 1
    assert 0.6 < values["feature_distance"] / values["feature_distance_truth"] < 1.6
    assert 0 < values["feature_distance_truth"] < 0.2


@pytest.mark.parametrize(
    ("language", "keep"),
    [
        (Addition3(), lambda text: text[0] == "1"),
        (Addition3(), lambda text: int(text[:3]) + int(text[4:7]) < 1000),
        (Brackets32(), lambda text: text[1] in ")]}"),
        (LargeGrammar(), lambda text: len(text.split()) < 8),
        (LargeGrammar(), lambda text: "that" not in text.split()),
    ],
)
def test_whoever_writes_only_some_of_the_texts_is_far_from_the_truth(language, keep):
    samples = [x for x in language.sample(np.random.default_rng(0), 2000) if keep(x)][:300]
    values = truth.measure(language, samples)
    assert values["valid"] == 1 and values["distinct"] > 0.7  # nothing else sees it
    assert values["feature_distance"] > 1.5 * values["feature_distance_truth"]


def test_a_distance_of_features_by_hand():
    """Of "()()" and "(())" each: depth 1 or 2, 2 or 1 empty pairs, 1 or 2 pairs in the first."""
    language, both = Brackets(length=4), {"()()": 1, "(())": 1}
    assert truth.feature_distance(language, both) == pytest.approx(0)
    assert truth.feature_distance(language, {"()()": 3, "(())": 1}) == pytest.approx(3 * 0.25 / 4)
    assert truth.feature_distance(language, {"(())": 9}) == pytest.approx(3 * 0.5 / 4)


def test_who_recalls_training_documents_never_writes_what_is_kept_back():
    language, generator = Addition3(), np.random.default_rng(0)
    shares = [
        truth.measure(language, texts)["held_out"]
        for texts in (
            language.split(generator, 300, held_out=False),
            language.split(generator, 300, held_out=True),
            language.sample(generator, 3000) + ["000+000=0001", None],
        )
    ]
    assert shares[:2] == [0, 1] and shares[2] == pytest.approx(0.1, abs=0.03)
    assert "held_out" not in truth.measure(Brackets32(), Brackets32().sample(generator, 3))


@pytest.mark.parametrize("language", FINITE, ids=str)
def test_expected_distance_is_that_of_samples_of_the_truth(language):
    n, draws = 200, 60
    distances, noises = [], set()
    for seed in range(draws):
        values = truth.measure(language, language.sample(np.random.default_rng(seed), n))
        distances.append(values["total_variation"])
        noises.add(values["total_variation_noise"])
    (noise,) = noises
    assert abs(np.mean(distances) - noise) < 4 * np.std(distances) / math.sqrt(draws)


@pytest.mark.parametrize(("n", "p"), [(1, 0.3), (5, 0.2), (7, 0.5), (40, 0.93), (3, 1.0), (9, 0.0)])
def test_mean_deviation_is_the_sum_over_the_binomial(n, p):
    expected = sum(
        math.comb(n, k) * p**k * (1 - p) ** (n - k) * abs(k - n * p) for k in range(n + 1)
    )
    found = 2 * n * truth.expected_total_variation(np.array([p]), np.array([1.0]), n)
    assert found == pytest.approx(expected, abs=1e-12)


# Independent positions


def validity(language, count=200_000):
    """The share of valid rows among independent positions, exactly and as it is sampled."""
    texts = list(language.texts())
    words = [text.split() if language.tokenizer == "whitespace_words" else text for text in texts]
    letters = sorted(set(itertools.chain(*words)))
    rows_NL = np.array([[letters.index(letter) for letter in word] for word in words])
    marginals = [np.bincount(column, minlength=len(letters)) / len(texts) for column in rows_NL.T]
    exact = sum(
        math.prod(m[token] for m, token in zip(marginals, row, strict=True)) for row in rows_NL
    )
    sampled = truth.product_of_marginals(rows_NL, count, seed=1)
    known = set(map(tuple, rows_NL.tolist()))
    return exact, np.mean([tuple(row) in known for row in sampled.tolist()])


@pytest.mark.parametrize(
    ("language", "closed"),
    [
        (CityPairs(), 1 / 256),
        (CityPairs(tuples=5, words=2), 1 / 5),
        (Addition(), 0.1 * (0.45**2 + 0.55**2)),
        (Brackets(length=4), 0.5),
        (Brackets(length=6, kinds=2), None),
    ],
    ids=str,
)
def test_product_of_marginals_is_valid_as_often_as_it_must(language, closed):
    exact, sampled = validity(language)
    assert closed is None or exact == pytest.approx(closed)
    assert abs(sampled - exact) < 4 * math.sqrt(exact * (1 - exact) / 200_000)


def test_product_of_marginals_keeps_marginals_and_is_reproducible():
    train = np.array([[1, 4, 2, 0], [1, 5, 6, 2]])
    rows = truth.product_of_marginals(train, 4000, seed=0)
    assert rows.shape == (4000, 4) and rows.dtype == np.int32
    assert (rows[:, 0] == 1).all() and abs((rows[:, 1] == 4).mean() - 0.5) < 0.04
    agree = (rows[:, 1] == 4) == (rows[:, 2] == 2)
    assert abs(agree.mean() - 0.5) < 0.04  # independent
    np.testing.assert_array_equal(rows, truth.product_of_marginals(train, 4000, seed=0))
    assert (rows != truth.product_of_marginals(train, 4000, seed=1)).any()
    with pytest.raises(ValueError, match=r"shape \(R, L\)"):
        truth.product_of_marginals(np.zeros((0, 4), int), 2, 0)


# In the table of results


@pytest.mark.parametrize("language", LENGTHS)
def test_the_table_of_a_run_gets_its_numbers(language, tmp_path):
    loaded = load(language, tmp_path)
    train, valid = loaded.rows["train"][:], loaded.rows["valid"][:]
    evaluator = evals.EVALS["truth"](loaded.tokenizer, train, loaded.corpus.source("train"))
    named = [("marginals", "yardstick", truth.product_of_marginals(train, 500, 0))]
    named += [
        (name, "yardstick", draw(train, 500, LENGTHS[language], 0))
        for name, draw in evals.BASELINES.items()
    ]
    table = base.table([evaluator], [*named, ("held-out", "data", valid)])
    shares = [row["values"]["valid"] for row in table["rows"]]
    assert shares[-1] == 1 and max(shares[:2]) < 0.2
    assert "valid" in base.format_table(table) and "truth's entropy" in base.format_table(table)
    if loaded.corpus.language.size <= truth.ENUMERABLE:
        values = table["rows"][-1]["values"]
        assert 0.7 < values["total_variation"] / values["total_variation_noise"] < 1.3


def test_text_without_a_known_truth_gives_dashes_not_a_failure():
    letters = make_tokenizer({"name": "characters"}, lambda: ["()"])
    evaluator = truth.Truth(letters, np.zeros((1, 4), int), ["()"])
    values = dict(evaluator(np.zeros((2, 4), int)))
    assert list(values) == [column.key for column in evaluator.columns]
    assert all(map(math.isnan, values.values()))
