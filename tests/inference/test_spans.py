"""Gaps of unknown length: what is compared, in closed form; which texts are written and taken."""

import numpy as np
import pytest
import tiny
from commands import call

from flm_jax import FlowModel, experiment
from flm_jax.errors import UserError
from flm_jax.inference import scoring, spans
from flm_jax.inference.given import whole
from flm_jax.tokenizers import TOKENIZERS

LENGTH = 14
COUNTS = 1 + np.arange(12) % 3


def test_what_is_expected_of_a_length_is_the_mean_where_it_is_true():
    values_GS = np.asarray([[-1.0, -9.0], [-9.0, -2.0], [-3.0, -9.0], [-9.0, -6.0]])
    np.testing.assert_allclose(spans.expected(values_GS, np.asarray([1, 2, 1, 2])), [-2.0, -4.0])


def test_a_bias_of_the_lengths_cancels():
    """log p falls by the distance from the true length, and is biased towards long gaps."""
    distance_GS = np.abs(COUNTS[:, None] - np.arange(1, 4))
    biased_GS = -1.0 * distance_GS + np.asarray([0.0, 5.0, 10.0])
    assert (biased_GS.argmax(1) == 2).all()
    assert spans.hits(biased_GS, COUNTS) == 1.0


def test_a_gap_does_not_say_what_is_expected_of_itself():
    """Without its own value, each of two gaps of a length is expected to be as the other is."""
    values_GS = np.asarray([[-5.0, -8.0], [-1.0, -8.0], [-8.0, -4.0], [-8.0, -4.0]])
    counts_G = np.asarray([1, 1, 2, 2])
    # Gap 0: -5 - (-1) = -4 at its true length, -8 - (-4) = -4 at the other: a tie, the shorter one.
    assert spans.hits(values_GS, counts_G) == 1.0
    values_GS[0, 0] = -5.1  # with the mean of both it would still be above
    assert spans.hits(values_GS, counts_G) == 0.75


@pytest.fixture(name="model", scope="module")
def fixture_model(tmp_path_factory):
    """A network of random weights on text that is there."""
    folder = tmp_path_factory.mktemp("spans")
    loss = {"name": "flow_matching", "options": {"given": "uniform"}}
    config = tiny.run_config(folder, loss=loss, data__length=LENGTH, data__packing="wrap")
    letters = TOKENIZERS["characters"]().build(lambda: [" ".join(tiny.WORDS)] * 2)
    made = experiment.Experiment(config, letters.vocab_size)
    return FlowModel(made, letters, tiny.params(made.model))


NUMBERS = (1, 1, 2, 2, 3, 3, 4, 4)  # of open tokens, two samples of each
FLAT = spans.Spans(np.zeros(4), 0.0, 8)


def test_the_length_that_fits_best_is_taken(model, monkeypatch):
    seen = []

    def of_places(model, tokens_NL, known_NL, scored_NL):
        seen.append((known_NL, scored_NL))
        log_p_NL = np.where(scored_NL, 0.0, np.nan)
        log_p_NL -= np.abs(known_NL.sum(1, keepdims=True) - 6.0)
        return scoring.Scores(tokens_NL, log_p_NL, scored_NL.sum() / len(scored_NL))

    monkeypatch.setattr(scoring, "of_places", of_places)
    texts = ["a[MASK]b", "[MASK]abc"]
    made = model.generate(2, 2, infill=texts, span=FLAT)
    known_NL, scored_NL = seen[0]
    # BOS is not scored, and of the neighbours at most two on either side.
    assert scored_NL.sum(1).tolist() == [n + 2 for n in NUMBERS] * 2
    assert not scored_NL[:, 0].any() and not scored_NL[8, 4:].any()
    assert known_NL.sum(1).tolist() == [1 + n + given for given in (2, 3) for n in NUMBERS]
    assert made.prompts == ("a[MASK]b", "a[MASK]b", "[MASK]abc", "[MASK]abc")
    assert [len(text) for text in made.texts] == [5] * 4 and made.lengths is FLAT
    assert all(text[0] == "a" and text[-1] == "b" for text in made.texts[:2])
    assert made.evaluations == 4 * 2 + (3 + 4 + 5 + 6)
    shifted = spans.Spans(np.asarray([0.0, -2.0, 0.0, 0.0]), 0.0, 8)  # more than expected of two
    assert len(model.generate(1, 2, infill="a[MASK]b", span=shifted).texts[0]) == 4
    full = "a" * 9 + "[MASK]" + "b"  # with BOS there is room for three more
    assert len(model.generate(1, 2, infill=full, span=FLAT).tokens[0]) == LENGTH


def test_gaps_are_cut_into_rows(model, monkeypatch):
    tried = []

    def written(model, parts, texts, num_samples, options):
        tried.extend(parts)
        return None, np.zeros((len(parts), 1)), 0.0

    monkeypatch.setattr(spans, "_written", written)
    rows = whole(model.tokenizer, LENGTH, ["abcabcabc", "cat"]).tokens_NL
    found = model.calibrate_spans(rows, max_span=3, gaps=6)
    assert found.gaps == 6 and len(tried) == 18
    letters = model.tokenizer.encode("abcabcabc")  # the other text is too short
    for g, part in enumerate(tried):
        missing, count = 1 + (g // 3) % 3, 1 + g % 3
        assert part.count(None) == count and None not in (part[0], part[-1])
        begin = part.index(None)
        assert part[:begin] == letters[:begin]
        assert part[begin + count :] == letters[begin + missing :]


def test_held_out_text_is_that_of_the_run(model, capsys, monkeypatch):
    from flm_jax import inference

    monkeypatch.setattr(inference, "load", lambda **_: model)
    words = ["generate", "--checkpoint=x", "--steps=1", "--num_samples=1", "--span=free"]
    assert call(*words, "--infill=a[MASK]", "--max_span=2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("of 64 held-out gaps of 1 to 2 tokens")
    assert lines[-1].endswith("(by chance 50%)") and lines[-2][0] == "a"


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"infill": "a[MASK]", "span": "any"}, "span='any' is unknown; write span='free'"),
        ({"prompt": "a", "span": "free"}, "span='free' is for an infill text"),
        ({"infill": [], "span": FLAT}, "there is no text to go on from"),
        ({"infill": "a[MASK:2]", "span": "free"}, "has 0 gaps of unknown length"),
        ({"infill": "a[MASK]b[MASK]", "span": "free"}, "has 2 gaps of unknown length"),
        ({"infill": "a[MASK]", "span": "free", "max_span": 1}, "max_span=1 must be at least 2"),
        ({"infill": "a[MASK]", "span": "free", "max_span": 9}, "has room for gaps of 9 tokens"),
        ({"infill": "a" * 13 + "[MASK]", "span": FLAT}, "has 14 tokens, but a text of 14 tokens"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(model, options, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        model.generate(1, 2, **options)
    assert "\n" not in str(error.value)


def test_two_gaps_of_every_length_are_needed(model):
    with pytest.raises(UserError, match="gaps=5 must be at least 6: two of every length"):
        model.calibrate_spans(max_span=3, gaps=5)


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--span=free"], "--span=free is for a text to fill in; give it as --infill"),
        (["--infill=[MASK]", "--span=any"], "--span=any is not known; use free"),
        (["--infill=[MASK]", "--max_span=3"], "--max_span=3 is for --span=free"),
    ],
)
def test_wrong_words_of_the_command(words, sentence, capsys):
    assert call("generate", "--checkpoint=x", *words) == 2
    assert sentence in capsys.readouterr().err
