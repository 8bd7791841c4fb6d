"""Prompts, infilling, editing, scoring, refining: what is given, what is read, what is refused."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from commands import call

from flm_jax import FlowModel, experiment
from flm_jax.cli import generate as command
from flm_jax.errors import UserError
from flm_jax.flow import discrete
from flm_jax.inference import given as given_lib
from flm_jax.inference.refining import doubtful
from flm_jax.losses.autoregressive import Autoregressive
from flm_jax.samplers.base import Given
from flm_jax.tokenizers import TOKENIZERS

TEXT = "red cat one sun"
LENGTH = 20


def tokenizer(name: str = "characters"):
    options = {"vocab_size": 273} if name == "byte_bpe" else {}
    return TOKENIZERS[name](**options).build(lambda: [TEXT + " abc"] * 3)


def model(folder, loss="flow_matching", options=None, **changes) -> FlowModel:
    """A network of random weights; nothing is trained."""
    section = {"loss": {"name": loss, "options": options or {}}, "data__length": LENGTH}
    config = tiny.run_config(folder, **section | changes)
    letters = tokenizer()
    made = experiment.Experiment(config, letters.vocab_size)
    return FlowModel(made, letters, tiny.params(made.model))


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory):
    return model(tmp_path_factory.mktemp("given"), options={"given_fraction": 0.3})


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    kind = {"model__mask_token": True, "sampler__name": "ancestral_masked"}
    return model(tmp_path_factory.mktemp("masked"), "masked_diffusion", **kind)


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    kind = {"model__causal": True, "sampler__name": "autoregressive"}
    kind["sampler__steps"] = (LENGTH - 1,)
    return model(tmp_path_factory.mktemp("causal"), "autoregressive", **kind)


def test_a_prompt_stands_behind_bos_and_the_rest_is_open():
    letters = tokenizer()
    asked = given_lib.asked(letters, LENGTH, prompt=["red", "a cat"])
    assert asked.texts == ("red", "a cat") and asked.end_N.tolist() == [LENGTH, LENGTH]
    assert asked.mask_NL.sum(1).tolist() == [4, 6] and asked.mask_NL[:, 0].all()
    assert asked.tokens_NL[0, :4].tolist() == [letters.bos_id, *letters.encode("red")]
    assert asked.repeated(2).texts == ("red", "red", "a cat", "a cat")
    given = asked.part(1, 3)  # filled up with the last row
    np.testing.assert_array_equal(given.tokens_BL, asked.tokens_NL[[1, 1, 1]])
    assert given_lib.asked(letters, LENGTH) is None


def test_a_text_is_read_to_its_end_mark():
    letters = tokenizer()
    asked = given_lib.asked(letters, LENGTH, prompt="red")
    row = np.full(LENGTH, letters.pad_id)
    row[:9] = [letters.bos_id, *letters.encode("red cat"), letters.eos_id]
    assert asked.read(letters, 0, row) == "red cat"
    row[8] = letters.encode("s")[0]
    row[9:] = letters.encode("u")[0]
    assert asked.read(letters, 0, row) == "red cats" + "u" * (LENGTH - 9)
    # A text with holes ends where it ends, though something was written behind it.
    asked = given_lib.asked(letters, LENGTH, infill="red c[MASK]t")
    assert asked.read(letters, 0, row) == "red cat"


def test_holes_are_open_tokens():
    letters, pieces, words = tokenizer(), tokenizer("byte_bpe"), tokenizer("whitespace_words")
    c = letters.encode
    found = given_lib.with_holes(letters, "red [MASK:3] o[MASK]e")
    assert found == [*c("red "), None, None, None, *c(" o"), None, *c("e")]
    assert given_lib.with_holes(letters, "[MASK] [MASK]") == [None, *c(" "), None]
    found = given_lib.with_holes(words, "red [MASK] one [MASK:2]")
    assert found == [*words.encode("red"), None, *words.encode("one"), None, None]
    # Tokens that begin with their space: that before a hole belongs to the open token.
    found = given_lib.with_holes(pieces, "red [MASK] [MASK] sun")
    assert found == [*pieces.encode("red"), None, None, *pieces.encode(" sun")]


def test_behind_a_hole_no_space_is_added():
    """SentencePiece has a space before all that it encodes, also before what is a text's middle."""
    text = "the red cat sleeps . a dog runs ."
    made = TOKENIZERS["sentencepiece"](vocab_size=22).build(lambda: [text] * 50)
    for holes in ("the [MASK] cat sleeps .", "the [MASK:2]. a dog", "the c[MASK]t", "[MASK] a dog"):
        found = given_lib.with_holes(made, holes)
        held = "".join("_" if token is None else made.piece(token) for token in found)
        assert held.strip() == re.sub(r" ?\[MASK(:2)?\]", lambda m: "__" if m[1] else "_", holes)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"prompt": "red", "infill": "[MASK]"}, "prompt and infill are set, but only one can be"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": []}, "there is no text to go on from"),
        ({"prompt": "r[MASK]"}, "has an open token in it; give it as infill"),
        ({"prompt": "RED"}, "the text 'RED' is '\N{REPLACEMENT CHARACTER}{3}' to the tokenizer"),
        ({"prompt": "r" * 19}, "has 19 tokens, but a text of 20 tokens has room for 18; shorten"),
        ({"infill": "[MASK:20]"}, "has 20 tokens, but a text of 20 tokens has room for 19"),
        ({"infill": "red"}, "the text 'red' has nothing to fill in; write \\[MASK\\]"),
        ({"infill": "[MASK:0]"}, "\\[MASK:0\\] is no number of open tokens"),
        ({"infill": "[MASK:x]"}, "\\[MASK:x\\] is no number of open tokens"),
    ],
)
def test_what_cannot_be_given_is_one_sentence(options, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        given_lib.asked(tokenizer(), LENGTH, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "tokens, mask, sentence",
    [
        (np.zeros((2, 19), int), np.zeros((2, 19), bool), "must both have the shape"),
        (np.zeros((2, 20), int), np.zeros((1, 20), bool), "must both have the shape"),
        (np.zeros(20, int), np.zeros(20, bool), "must both have the shape"),
        (np.zeros((0, 20), int), np.zeros((0, 20), bool), "there are no given rows"),
        (np.zeros((1, 20)), np.zeros((1, 20), bool), "must be integers and their mask"),
        (np.zeros((1, 20), int), np.zeros((1, 20), int), "their mask .int64. bool"),
        (np.full((1, 20), 99), np.ones((1, 20), bool), "99 among the given tokens is not a token"),
    ],
)
def test_arrays_of_given_tokens_are_checked(tokens, mask, sentence):
    with pytest.raises(UserError, match=sentence):
        given_lib.asked(tokenizer(), LENGTH, given=Given(tokens, mask))
    unused = Given(np.full((1, LENGTH), 99), np.zeros((1, LENGTH), bool))
    assert given_lib.asked(tokenizer(), LENGTH, given=unused) is not None


def test_places_that_are_kept():
    letters = tokenizer()
    asked = given_lib.kept(letters, LENGTH, "red cat", "0:2, 4, 6:")
    assert np.flatnonzero(asked.mask_NL[0]).tolist() == [0, 1, 2, 5, 7]
    assert asked.end_N.tolist() == [8]
    for keep, sentence in [
        ("x", "keep='x' is not a list of places"),
        ("5:9", "'5:9' in keep='5:9' names no tokens of a text of 7"),
        ("3:3", "names no tokens"),
        ("", "is not a list of places"),
    ]:
        with pytest.raises(UserError, match=sentence):
            given_lib.kept(letters, LENGTH, "red cat", keep)


def test_a_model_writes_on_and_around_what_is_given(denoiser):
    letters = denoiser.tokenizer
    written = denoiser.generate(2, 2, prompt=["red c", "sun "])
    assert written.tokens.shape == (4, LENGTH) and written.prompts[1:3] == ("red c", "sun ")
    prompt = [letters.bos_id, *letters.encode("red c")]
    np.testing.assert_array_equal(written.tokens[:2, :6], [prompt] * 2)
    assert all(text.startswith(p) for text, p in zip(written.texts, written.prompts, strict=True))
    assert (
        written.rows()[3]["prompt"] == "sun " and "prompt" not in denoiser.generate(1, 2).rows()[0]
    )
    filled = denoiser.generate(4, 2, infill="red [MASK:3] one")
    assert all(row[1:5].tolist() == letters.encode("red ") for row in filled.tokens)
    assert all(row[8:12].tolist() == letters.encode(" one") for row in filled.tokens)
    programs = len(denoiser.programs.kept)
    edited = denoiser.edit("red cat one", "0:4,7:", num_samples=4, steps=2)
    assert len(denoiser.programs.kept) == programs  # a mask is no other program
    np.testing.assert_array_equal(edited.tokens[:, 1:5], filled.tokens[:, 1:5])
    np.testing.assert_array_equal(edited.tokens, filled.tokens)  # the same question
    whole = Given(filled.tokens[:1], np.ones((1, LENGTH), bool))
    np.testing.assert_array_equal(
        denoiser.generate(4, 2, given=whole).tokens, filled.tokens[[0] * 4]
    )


def test_a_model_without_given_tokens_says_how_it_gets_them(tmp_path):
    plain = model(tmp_path)
    for ask in (
        lambda: plain.generate(1, 2, prompt="red"),
        lambda: plain.generate(1, 2, sampler="refinement"),
        lambda: plain.score("red"),
    ):
        with pytest.raises(UserError) as error:
            ask()
        assert str(error.value).endswith(
            "but this model was not trained for given tokens (loss 'flow_matching'); train one "
            "with --config.loss.options.given=uniform"
        )
    kind = {"model__two_times": True, "sampler__name": "flow_map"}
    jumps = model(tmp_path, "second_stage", **kind)
    with pytest.raises(UserError, match="not trained .* with --config.loss.name=any_order$"):
        jumps.generate(1, 2, prompt="red")


def test_a_sampler_of_rounds_is_checked_before_training(tmp_path):
    from flm_jax import config as config_lib

    config = tiny.run_config(tmp_path, sampler__name="refinement")
    with pytest.raises(UserError, match="gives the tokens that it commits, but loss 'flow_match"):
        config_lib.validate(config, experiment.tables())
    given = {"name": "flow_matching", "options": {"given_fraction": 0.3}}
    config = tiny.run_config(tmp_path, sampler__name="refinement", loss=given)
    config_lib.validate(config, experiment.tables())


def test_models_of_tokens_take_prompts(masked, causal):
    for made, steps in (masked, 3), (causal, None):
        written = made.generate(2, steps, prompt="red c")
        prompt = [made.tokenizer.bos_id, *made.tokenizer.encode("red c")]
        np.testing.assert_array_equal(written.tokens[:, :6], [prompt] * 2)
    assert masked.generate(1, 3, infill="r[MASK]d").texts[0].startswith("r")
    with pytest.raises(UserError, match="an autoregressive model writes from left to right"):
        causal.generate(1, infill="r[MASK]d")


def test_an_autoregressive_score_is_the_probability_of_the_text(causal):
    scores = causal.score(["red cat", "sun"])
    assert scores.evaluations == 1.0
    net = causal.net(causal.params)
    nll_BM = Autoregressive().next_token(net, jnp.asarray(scores.tokens))
    for row, count in (0, 7), (1, 3):
        np.testing.assert_allclose(
            -scores.log_probs[row, 1 : count + 1], nll_BM[row, :count], rtol=1e-5
        )
        assert np.isnan(scores.log_probs[row, count + 1 :]).all()
        np.testing.assert_allclose(scores.nats[row], nll_BM[row, :count].mean(), rtol=1e-5)
    with pytest.raises(UserError, match="scores texts without holes"):
        mask = np.ones((1, LENGTH), bool)
        mask[0, 3] = False
        causal.score(Given(scores.tokens[:1], mask))


def test_a_masked_score_opens_one_token_at_a_time(masked):
    scores = masked.score("red cat")
    assert scores.evaluations == 7.0
    net, mask_id = masked.net(masked.params), masked.tokenizer.vocab_size
    for place in (1, 4, 7):
        seen = np.where(np.arange(LENGTH) > 7, mask_id, scores.tokens)
        seen[0, place] = mask_id
        posterior = discrete.without_mask(net(net.table[seen], jnp.zeros(1)).posterior)
        expected = posterior.log_prob(jnp.asarray(scores.tokens))[0, place]
        np.testing.assert_allclose(scores.log_probs[0, place], expected, rtol=1e-4)
    grouped = masked.score("red cat", group=3)
    assert grouped.evaluations == 3.0
    assert (np.isnan(grouped.log_probs) == np.isnan(scores.log_probs)).all()


def test_a_denoiser_is_asked_where_the_token_is_open(denoiser):
    """The score of a token does not change with what stands in its place."""
    one, other = denoiser.score(["red cat"]), denoiser.score(["rad cat"])
    changed = np.isclose(one.log_probs, other.log_probs, equal_nan=True)[0]
    place = 2
    p = np.exp([one.log_probs[0, place], other.log_probs[0, place]])
    assert (0 < p).all() and p.sum() < 1  # two tokens of one distribution
    assert not changed[1] and one.evaluations == 7.0
    array = Given(one.tokens, np.arange(LENGTH)[None] < 8)
    np.testing.assert_allclose(denoiser.score(array).log_probs, one.log_probs, rtol=1e-5)
    with pytest.raises(UserError, match="group=0 must be at least 1"):
        denoiser.score("red", group=0)


def test_the_least_likely_tokens_are_doubtful():
    log_p = np.asarray([[np.nan, -3.0, -1.0, -2.0, np.nan], [np.nan, -1.0, np.nan, np.nan, np.nan]])
    assert doubtful(log_p, 0.5).tolist() == [
        [False, True, False, True, False],
        [False, True, False, False, False],
    ]
    assert (doubtful(log_p, 1.0) == ~np.isnan(log_p)).all()


def test_refining_rewrites_the_worst_and_keeps_the_rest(denoiser):
    texts = ["red cat", "one sun"]
    scores = denoiser.score(texts)
    refined = denoiser.refine(texts, rounds=1, share=0.3, steps=2)
    order_NL = np.argsort(np.where(np.isnan(scores.log_probs), np.inf, scores.log_probs), axis=1)
    for row, worst in enumerate(order_NL[:, :3]):
        kept = np.setdiff1d(np.arange(8), worst)
        np.testing.assert_array_equal(refined.tokens[row, kept], scores.tokens[row, kept])
    assert refined.evaluations == 7.0 + 2.0 and len(refined.texts[0]) <= 7
    assert denoiser.refine(texts, rounds=2, steps=2).evaluations == 2 * (7.0 + 2.0)
    for options, sentence in ({"rounds": 0}, "rounds=0"), ({"share": 0.0}, "share=0.0 of the"):
        with pytest.raises(UserError, match=sentence):
            denoiser.refine("red", **options)


def test_the_command_reads_prompts(tmp_path, denoiser, monkeypatch, capsys):
    from flm_jax import inference

    monkeypatch.setattr(inference, "load", lambda **_: denoiser)
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "red c"}\n\n{"prompt": "sun "}\n')
    output = tmp_path / "samples.jsonl"
    words = ["generate", "--checkpoint=x", "--steps=2", "--num_samples=2"]
    assert call(*words, f"--prompts={lines}", f"--output={output}") == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["red c", "red c", "sun ", "sun "]
    assert [row["text"] for row in rows] == denoiser.generate(2, 2, prompt=["red c", "sun "]).texts
    assert call(*words, "--infill=red [MASK] one", "--sampler=churn") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("red ")


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--prompt=a", "--infill=[MASK]"], "--prompt and --infill are given, but only one"),
        (["--prompts=nowhere.jsonl"], "--prompts=nowhere.jsonl cannot be read"),
        (["--prompts={bad}"], "line 2 of {bad} is not like"),
        (["--prompts={mixed}"], "{mixed} mixes prompts and infills"),
        (["--prompts={empty}"], "{empty} holds no line"),
        (["--sampler_options=inside"], "--sampler_options=inside: 'inside' is not NAME=VALUE"),
    ],
)
def test_wrong_words_are_refused_before_a_model_is_read(tmp_path, words, sentence, capsys):
    files = {
        "bad": '{"prompt": "a"}\n{"promt": "b"}',
        "mixed": '{"prompt": "a"}\n{"infill": "[MASK]"}',
        "empty": "\n",
    }
    paths = {name: tmp_path / name for name in files}
    for name, text in files.items():
        paths[name].write_text(text)
    words = [word.format(**paths) if "{" in word else word for word in words]
    assert call("generate", f"--checkpoint={tmp_path}", *words) == 2
    assert sentence.format(**paths) in capsys.readouterr().err


def test_options_of_the_sampler_are_words():
    options = command.Options(checkpoint="x", sampler_options=("block_length=8", "inside=euler"))
    assert options.options_of_sampler() == {"block_length": "8", "inside": "euler"}
    assert jax.tree.leaves(command.given(options)) == []
    options = command.Options(checkpoint="x", sampler_options=("thresholds=0.9", "0.5", "top_k=1"))
    assert options.options_of_sampler() == {"thresholds": "0.9,0.5", "top_k": "1"}
