"""The pair decides: fixtures that must lose, and comparisons at matched diversity only."""

import numpy as np
import pytest

from flm_jax.evals import judged, ngram, verdict
from flm_jax.evals.diversity import distinct
from flm_jax.evals.judged import Judged
from flm_jax.evals.verdict import Point, at_diversity_of, best, is_matched, sentence
from flm_jax.tokenizers.characters import Characters

V = 12
LETTERS = Characters("abcdefgh")
CHANCES = np.array([0.6, 0.3, 0.1])


def rows(n=48, length=20, seed=0):
    """Rows of a Markov chain over the ids 3..11 behind BOS: the next id is 1, 2 or 3 further."""
    generator = np.random.default_rng(seed)
    jumps = generator.choice([1, 2, 3], p=CHANCES, size=(n, length - 1))
    body = (generator.integers(9, size=(n, 1)) + np.cumsum(jumps, axis=1)) % 9 + 3
    return np.concatenate([np.full((n, 1), LETTERS.bos_id), body], axis=1)


class Chain:
    """The judge that knows the chain."""

    name, tokenizer, longest = "the chain", LETTERS, 0

    def score(self, tokens_NL):
        tokens = np.asarray(tokens_NL)
        jump = (tokens[:, 1:] - tokens[:, :-1]) % 9
        known = (tokens[:, 1:] >= 3) & (tokens[:, :-1] >= 3) & (jump >= 1) & (jump <= 3)
        p = np.where(known, CHANCES[np.clip(jump, 1, 3) - 1], 1e-6)
        p[:, 0] = 1 / 9
        return -np.log(p)


def point(name, tokens):
    return Point(name, float(Chain().score(tokens).mean()), distinct(tokens, 4))


TRUTH = point("truth", np.concatenate([rows(seed=i) for i in range(1)]))


def losers():
    """Samplers that a single number, or an entropy within a sample, would let pass."""
    real = rows(seed=7)
    generator = np.random.default_rng(0)
    likeliest = np.cumsum(np.ones((48, 19), int), axis=1)
    start = generator.integers(2, size=(48, 1))
    yield "a tiled row", np.repeat(real[:1], 48, axis=0)
    yield (
        "the likeliest continuation",
        np.concatenate([real[:, :1], (start + likeliest) % 9 + 3], axis=1),
    )
    shuffled = real.copy()
    for row in shuffled:
        generator.shuffle(row[1:])
    yield "shuffled words", shuffled


@pytest.mark.parametrize(("name", "tokens"), list(losers()))
def test_what_must_lose_loses(name, tokens):
    """Each has the truth's entropy within a sample, or nearly; none may be called as good."""
    found = point(name, tokens)
    fresh = point("fresh truth", rows(seed=3))
    assert is_matched(fresh, TRUTH) and fresh.nats == pytest.approx(TRUTH.nats, abs=0.05)
    assert not is_matched(found, TRUTH) or found.nats > TRUTH.nats + 0.5
    assert "as diverse as real text" not in sentence(found, TRUTH) or found.nats > TRUTH.nats + 0.5
    assert best({name: [found], "fresh": [fresh]}, TRUTH)[0] == "fresh"


def test_the_sentence_says_what_was_bought():
    truth = Point("truth", 1.2, 0.77)
    for nats, diversity, words in (
        (4.1, 0.80, "as diverse as real text, 2.90 nats less likely"),
        (1.2, 0.80, "as diverse as real text"),
        (0.96, 0.32, "likelihood bought with diversity, its samples are alike"),
        (3.0, 0.32, "its samples are alike"),
        (9.0, 0.97, "more diverse than real text, which costs likelihood"),
    ):
        said = sentence(Point("x", nats, diversity), truth)
        assert said.endswith(words) and f"{nats:.2f} nats" in said
        assert f"distinct-4 {diversity:.2f}" in said


def test_likelihood_at_matched_diversity_is_interpolated_and_never_extrapolated():
    truth = Point("truth", 1.2, 0.75)
    cold, warm = Point("T=0.5", 2.0, 0.6), Point("T=1", 4.0, 0.9)
    assert at_diversity_of(truth, [warm, cold]) == pytest.approx(3.0)
    assert at_diversity_of(truth, [cold]) is None
    assert at_diversity_of(truth, [Point("", 2.5, 0.71), Point("", 2.2, 0.65)]) == 2.5
    assert at_diversity_of(truth, []) is None
    assert at_diversity_of(truth, [Point("", 2.0, 0.75), Point("", 4.0, 0.75)]) == 3.0
    assert best({"a": [cold], "b": [cold, warm]}, truth) == ("b", 3.0)
    assert best({"a": [cold]}, truth) is None
    assert verdict.MATCHED == 0.05


def test_nats_per_token_and_per_character_by_hand():
    values = dict(Judged(Chain(), LETTERS, rows(seed=9))(rows()))
    assert values["judge_nats"] == pytest.approx(TRUTH.nats)
    letters = sum(len(LETTERS.decode(row.tolist())) for row in rows())
    assert values["judge_nats_per_character"] * letters == pytest.approx(TRUTH.nats * 48 * 19)
    fitted = ngram.fit(rows(), judged.ORDER, LETTERS)
    assert values["held_out_nats"] == pytest.approx(fitted.score(rows(seed=9)).mean())


def test_held_out_text_finds_the_collapsed_sampler():
    evaluate = Judged(Chain(), LETTERS, rows(200, seed=9))
    real, tiled = (dict(evaluate(x))["held_out_nats"] for x in (rows(), rows()[:1].repeat(48, 0)))
    assert tiled > real + 0.5


def test_a_judge_with_other_tokens_reads_the_text():
    """The same letters under other ids: per character the same, token for token not comparable."""
    other = Characters("0abcdefgh")

    class Moved(Chain):
        tokenizer = other

        def score(self, tokens_NL):
            tokens = np.asarray(tokens_NL)
            return super().score(np.where(tokens > 4, tokens - 1, tokens))

    tokens = rows()
    tokens = tokens[(tokens[:, 1:] > 3).all(1)]  # [UNK] is no letter that both know
    if not len(tokens):
        tokens = np.array([[1, 4, 5, 6], [1, 5, 6, 8]])
    same, moved = (dict(Judged(judge, LETTERS)(tokens)) for judge in (Chain(), Moved()))
    assert "judge_nats" in same and "judge_nats" not in moved
    assert moved["judge_nats_per_character"] == pytest.approx(same["judge_nats_per_character"])
    assert judged.score_texts(Moved(), ["", ""]) == (0.0, 0)
    one, two = (judged.score_texts(Moved(), [text])[0] for text in ("ab", "abd"))
    assert judged.score_texts(Moved(), ["ab", "", "abd"]) == (pytest.approx(one + two), 5)

    class Short(Moved):
        longest = 3

    assert judged.score_texts(Short(), ["ab", "abd"]) == (pytest.approx(2 * one), 4)


def row(name, kind, nats, diversity, **more):
    return {"name": name, "kind": kind, "values": {"judge_nats": nats, "distinct_4": diversity}} | (
        more
    )


def test_sentences_of_a_table_say_best_at_matched_diversity_only():
    real = row("held-out data", "data", 1.3, 0.7), row("fresh truth", "data", 1.2, 0.77)
    collapsed = row("8 steps", "model", 0.96, 0.32)
    near, far = row("32 steps", "model", 3.3, 0.80), row("64 steps", "model", 3.2, 0.74)
    said = verdict.sentences([collapsed, near, far, row("unigram", "yardstick", 9, 1.0), *real])
    assert [text.split(":")[0] for text in said[:3]] == ["8 steps", "32 steps", "64 steps"]
    assert "(real text 1.20)" in said[0] and "likelihood bought with diversity" in said[0]
    assert said[3:] == ["best at the diversity of real text: 64 steps, 3.20 nats a token"]
    said = verdict.sentences([collapsed, row("1 step", "model", 5.0, 0.99), *real])
    assert said[2:] == ["none is called best: no samples are as diverse as real text"]
    assert len(verdict.sentences([near, *real])) == 1
    assert verdict.sentences([near]) == verdict.sentences([row("8", "model", None, None)]) == []


def test_a_swept_knob_is_interpolated_in_a_table():
    real = row("held-out data", "data", 1.2, 0.75)
    curve = [
        row(f"8 steps, T {d}", "model", n, d, method="8 steps") for n, d in ((2, 0.6), (4, 0.9))
    ]
    line = "8 steps at the diversity of real text, interpolated over the knob: 3.00 nats a token"
    assert verdict.sentences([*curve, real])[2:] == [line]
    other = row("32 steps", "model", 2.9, 0.5, method="32 steps")
    best_ = "best at the diversity of real text: 8 steps, 3.00 nats a token"
    assert verdict.sentences([*curve, other, real])[3:] == [line, best_]
    assert "it is not reached" in verdict.sentences([curve[0], dict(curve[0]), real])[2]


def test_without_common_tokens_characters_are_compared():
    rows_ = [row("8 steps", "model", None, 0.7), row("held-out data", "data", None, 0.72)]
    for one, value in zip(rows_, (1.4, 0.5), strict=True):
        one["values"]["judge_nats_per_character"] = value
    pairs = verdict.read(rows_)
    assert (pairs.unit, pairs.likelihood) == ("character", "judge_nats_per_character")
    assert verdict.sentences(rows_)[0].startswith("8 steps: 1.40 nats a character (real text 0.50)")
