"""The Kneser-Ney judge: a distribution, by hand on a tiny text, and better than Witten-Bell."""

from pydoc_data import topics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flm_jax.evals import kneser_ney, ngram
from flm_jax.tokenizers.characters import Characters

V = 8
LETTERS = Characters("abcd")  # with four special tokens: V


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(2, 6).flatmap(
        lambda length: st.lists(
            st.lists(st.integers(0, V - 1), min_size=length, max_size=length), min_size=1
        )
    ),
    st.lists(st.integers(0, V - 1), min_size=1, max_size=7),
)
def test_probabilities_of_the_next_token_sum_to_one(order, rows, prefix):
    model = kneser_ney.fit(np.array(rows), LETTERS, order)
    continued = np.array([[*prefix, token] for token in range(V)])
    p = np.exp(-model.score(continued)[:, -1])
    assert p.sum() == pytest.approx(1.0) and (p > 0).all()


def test_bigrams_by_hand():
    """Behind the first token 0: a a b, a a b, a c b, twice "0 a" more than continuation counts."""
    a, b, c = 4, 5, 6
    rows = np.array([[0, a, a, b], [0, a, a, b], [0, a, c, b]])
    model = kneser_ney.fit(rows, LETTERS, 2)
    # Bigrams: 0a 3, aa 2, ab 2, ac 1, cb 1: n_1 = 2, n_2 = 2, n_3 = 1, n_4 = 0.
    y = 2 / (2 + 2 * 2)
    d1, d2, d3 = 1 - 2 * y * 2 / 2, 2 - 3 * y * 1 / 2, 3 - 4 * y * 0
    # Tokens before: of a 0 and a, of b a and c, of c a: n_1 = 1, n_2 = 2, n_3 = 0, so y = 1/5.
    e1, e2 = 1 - 2 * 0.2 * 2 / 1, 2 - 3 * 0.2 * 0
    assert (e1, e2) == pytest.approx((0.2, 2.0)) and (d1, d2, d3) == pytest.approx((1 / 3, 1.5, 3))
    rest = (2 * e2 + e1) / 5 / V
    single = {a: (2 - e2) / 5 + rest, b: (2 - e2) / 5 + rest, c: (1 - e1) / 5 + rest}
    after_0 = (3 - d3) / 3 + d3 / 3 * single[a]
    taken = (2 * d2 + d1) / 5
    after_a = {
        a: (2 - d2) / 5 + taken * single[a],
        b: (2 - d2) / 5 + taken * single[b],
        c: (1 - d1) / 5 + taken * single[c],
    }
    expected = -np.log([after_0, after_a[c], (1 - d1) / 1 + d1 * single[b]])
    np.testing.assert_allclose(model.score(rows[2:])[0], expected)
    expected = -np.log([after_0, after_a[a], after_a[b]])
    np.testing.assert_allclose(model.score(rows[:1])[0], expected)


def test_a_token_that_follows_one_other_only_is_not_expected_elsewhere():
    """ "Francisco" is frequent, and yet unlikely behind anything but "San"."""
    san, francisco, often, other = 4, 5, 6, 7
    generator = np.random.default_rng(0)
    rows = [[0, san, francisco, other]] * 30 + [
        [0, *generator.permutation([often, other, 1])] for _ in range(30)
    ]
    model = kneser_ney.fit(np.array(rows), LETTERS, 2)
    never_seen = 2  # a context that is unknown
    after = model.score(np.array([[never_seen, francisco], [never_seen, often]]))[:, 0]
    assert after[1] < after[0]
    plain = ngram.fit(np.array(rows), 2, LETTERS)
    after = plain.score(np.array([[never_seen, francisco], [never_seen, often]]))[:, 0]
    assert after[0] == pytest.approx(after[1])


def test_how_rows_begin_is_known_to_longer_models_too():
    """Nothing stands before the first token, so what begins with it has whole counts."""
    generator = np.random.default_rng(0)
    rows = np.concatenate(
        [np.zeros((100, 1), int), [[4]] * 90 + [[5]] * 10, generator.integers(4, V, (100, 6))], 1
    )
    p = np.exp(-kneser_ney.fit(rows, LETTERS, 4).score(rows)[:, 0])
    assert p[0] == pytest.approx(0.9, abs=0.03) and p[-1] == pytest.approx(0.1, abs=0.03)


def test_it_predicts_real_text_better_than_witten_bell():
    text = " ".join(" ".join(topics.topics.values()).split())[:200_000]  # Python's own manual
    letters = Characters("".join(sorted(set(text))))
    ids = np.array(letters.encode(text))
    rows = np.concatenate(
        [np.full((len(ids) // 64, 1), letters.bos_id), ids[: len(ids) // 64 * 64].reshape(-1, 64)],
        1,
    )
    train, valid = rows[: -len(rows) // 5], rows[-len(rows) // 5 :]
    strong = kneser_ney.fit(train, letters).score(valid).mean()
    weak = min(ngram.fit(train, order, letters).score(valid).mean() for order in (3, 4, 5))
    assert strong < weak - 0.02
    assert strong < ngram.fit(train, 3, letters).score(valid).mean() - 0.2


def test_fingerprints_tell_texts_orders_and_kinds_apart():
    rows = np.array([[0, 4, 5], [0, 5, 4]])
    models = [
        kneser_ney.fit(rows, LETTERS),
        kneser_ney.fit(rows[:1], LETTERS),
        kneser_ney.fit(rows, LETTERS, 3),
        ngram.fit(rows, 3, LETTERS),
    ]
    assert len({model.fingerprint for model in models}) == 4
    assert kneser_ney.fit(rows.astype(np.int32), LETTERS).fingerprint == models[0].fingerprint
