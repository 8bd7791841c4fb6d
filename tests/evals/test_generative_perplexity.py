"""The GPT-2 scorer against a plain numpy one, which tokens count, and the recorded numbers."""

import dataclasses
import json
import math

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import pre_tokenizers

from flm_jax.errors import UserError
from flm_jax.evals import generative_perplexity as gp
from flm_jax.evals import gpt2
from flm_jax.tokenizers.gpt2 import Gpt2

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
EOS = 256
WIDTH, DEPTH, HEADS, POSITIONS, VOCAB = 12, 2, 3, 256, 257


def raw_weights(seed=0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"wte.weight": (VOCAB, WIDTH), "wpe.weight": (POSITIONS, WIDTH)}
    shapes |= {"ln_f.weight": (WIDTH,), "ln_f.bias": (WIDTH,)}
    for layer in range(DEPTH):
        for name, factors in gpt2._BLOCK.values():
            shapes[f"h.{layer}.{name}"] = tuple(factor * WIDTH for factor in factors)
    return {k: (0.5 * rng.normal(size=s)).astype(np.float32) for k, s in shapes.items()}


def write_scorer(folder, weights=None, **config):
    folder.mkdir(exist_ok=True)
    vocab = {token: i for i, token in enumerate([*ALPHABET, "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    sizes = {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": DEPTH, "n_head": HEADS}
    sizes |= {"n_positions": POSITIONS, "eos_token_id": EOS, "model_type": "gpt2"}
    (folder / "config.json").write_text(json.dumps(sizes | config))
    save_file(raw_weights() if weights is None else weights, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    return gpt2.load(write_scorer(tmp_path_factory.mktemp("scorer") / "tiny"))


def random_tokens(rows, length, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, (rows, length), dtype=np.int32)


def norm64(x, scale, bias):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale + bias


def softmax64(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def log_probs64(weights, row):
    """One row through GPT-2 in float64, head by head, position by position: (L, V)."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    h = w["wte.weight"][row] + w["wpe.weight"][: len(row)]
    size = WIDTH // HEADS
    for layer in range(DEPTH):
        p = {n[4:]: a for n, a in w.items() if n.startswith(f"h.{layer}.")}
        x = norm64(h, p["ln_1.weight"], p["ln_1.bias"])
        q, k, v = np.split(x @ p["attn.c_attn.weight"] + p["attn.c_attn.bias"], 3, axis=1)
        mixed = np.zeros_like(h)
        for i in range(len(row)):
            for head in range(HEADS):
                s = slice(head * size, (head + 1) * size)
                weight = softmax64(k[: i + 1, s] @ q[i, s] / math.sqrt(size))
                mixed[i, s] = weight @ v[: i + 1, s]
        h = h + mixed @ p["attn.c_proj.weight"] + p["attn.c_proj.bias"]
        x = norm64(h, p["ln_2.weight"], p["ln_2.bias"])
        x = x @ p["mlp.c_fc.weight"] + p["mlp.c_fc.bias"]
        x = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        h = h + x @ p["mlp.c_proj.weight"] + p["mlp.c_proj.bias"]
    logits = norm64(h, w["ln_f.weight"], w["ln_f.bias"]) @ w["wte.weight"].T
    return np.log(softmax64(logits))


def test_forward_pass_equals_a_plain_one(scorer):
    tokens = random_tokens(3, 17)
    got = np.asarray(gpt2.log_probs(scorer.params, scorer.config, tokens, np.ones_like(tokens)))
    for row, log_probs in zip(tokens, got, strict=True):
        np.testing.assert_allclose(log_probs, log_probs64(raw_weights(), row), atol=3e-4)


def test_chunked_nlls_equal_the_dense_ones(scorer):
    tokens = random_tokens(4, 201)  # 800 targets: two chunks, the second one padded
    dense = np.asarray(gpt2.log_probs(scorer.params, scorer.config, tokens, np.ones_like(tokens)))
    expected = -np.take_along_axis(dense[:, :-1], tokens[:, 1:, None], 2)[..., 0]
    np.testing.assert_allclose(scorer.nlls(tokens), expected, atol=1e-4)


def test_padding_on_the_right_changes_nothing(scorer):
    tokens = random_tokens(2, 20)
    longer = np.concatenate([tokens, np.full((2, 9), EOS, np.int32)], axis=1)
    np.testing.assert_allclose(scorer.nlls(longer)[:, :19], scorer.nlls(tokens), atol=1e-4)


def test_masked_tokens_are_not_seen(scorer):
    tokens, mask = random_tokens(1, 12), np.ones((1, 12), np.int32)
    mask[0, 5] = 0
    other = tokens.copy()
    other[0, 5] = (other[0, 5] + 1) % VOCAB
    seen, changed = scorer.nlls(tokens, mask), scorer.nlls(other, mask)
    np.testing.assert_allclose(seen[0, 6:], changed[0, 6:], atol=1e-5)
    assert np.abs(scorer.nlls(tokens)[0, 6:] - scorer.nlls(other)[0, 6:]).max() > 1e-2


def test_prefixes_buffers_own_head_and_half_precision(scorer, tmp_path):
    tokens = random_tokens(2, 9)
    expected = scorer.nlls(tokens)
    weights = {f"transformer.{name}": array for name, array in raw_weights().items()}
    weights["transformer.h.0.attn.bias"] = np.ones((1, 1, 4, 4), np.float32)
    weights["lm_head.weight"] = raw_weights()["wte.weight"]
    prefixed = gpt2.load(write_scorer(tmp_path / "prefixed", weights))
    np.testing.assert_array_equal(prefixed.nlls(tokens), expected)
    weights["lm_head.weight"] = weights["lm_head.weight"][::-1].copy()
    own_head = gpt2.load(write_scorer(tmp_path / "own", weights))
    mirrored = gpt2.log_probs(own_head.params, own_head.config, tokens, np.ones_like(tokens))
    dense = gpt2.log_probs(scorer.params, scorer.config, tokens, np.ones_like(tokens))
    np.testing.assert_allclose(mirrored[..., ::-1], dense, atol=1e-4)
    for dtype, error in ((ml_dtypes.bfloat16, 0.5), (np.float16, 0.05), (np.float64, 1e-9)):
        cast = {name: array.astype(dtype) for name, array in raw_weights().items()}
        rounded = gpt2.load(write_scorer(tmp_path / np.dtype(dtype).name, cast))
        np.testing.assert_allclose(rounded.nlls(tokens), expected, atol=error)
    whole = {name: np.round(array).astype(np.int8) for name, array in raw_weights().items()}
    with pytest.raises(UserError, match="has the type int8; quantised weights cannot be read"):
        gpt2.load(write_scorer(tmp_path / "quantised", whole))


def shard(folder, count=3):
    """Splits the weights of a scorer's folder into files that an index names."""
    weights = list(raw_weights().items())
    names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    for i, name in enumerate(names):
        save_file(dict(weights[i::count]), folder / name)
    weight_map = {key: names[i % count] for i, (key, _) in enumerate(weights)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    return names


def test_weights_in_shards(scorer, tmp_path):
    folder = write_scorer(tmp_path / "sharded")
    names = shard(folder)
    loaded = gpt2.load(folder).params
    for ours, expected in zip(jax.tree.leaves(loaded), jax.tree.leaves(scorer.params), strict=True):
        np.testing.assert_array_equal(ours, expected)
    (folder / names[1]).rename(folder / "elsewhere")
    with pytest.raises(UserError, match=f"{names[1]} is missing or not a readable"):
        gpt2.load(folder)
    for text in ("{}", "[", '{"weight_map": {}}', '{"weight_map": {"wte.weight": "../x"}}'):
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(UserError, match="index.json is not an index of shards"):
            gpt2.load(folder)


@pytest.mark.parametrize(
    ("width", "depth", "heads"), [(768, 12, 12), (1024, 24, 16), (1280, 36, 20), (1600, 48, 25)]
)
def test_published_sizes_are_read_from_the_config(width, depth, heads, tmp_path):
    """Of gpt2 to gpt2-xl: every tensor has the published shape (their numbers of parameters)."""
    sizes = {"vocab_size": 50257, "n_positions": 1024, "n_embd": width, "n_layer": depth}
    folder = tmp_path / "x"
    write_scorer(folder, {}, n_head=heads, eos_token_id=50256, **sizes)
    config, eos_id = gpt2._read_config(folder)
    count = 0

    def tensor(name, *shape):
        nonlocal count
        count += math.prod(shape)
        return np.broadcast_to(np.float32(0), shape)

    gpt2._assemble(tensor, False, dataclasses.replace(config, depth=1))
    block = sum(math.prod(f * width for f in factors) for _, factors in gpt2._BLOCK.values())
    published = {768: 124_439_808, 1024: 354_823_168, 1280: 774_030_080, 1600: 1_557_611_200}
    assert count + (config.depth - 1) * block == published[width] and eos_id == 50256
    assert config.heads == heads


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"activation_function": "gelu"}, "activation_function = 'gelu'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ({"n_head": 5}, "sizes that no GPT-2 has"),
        ({"n_embd": "wide"}, "not a GPT-2 configuration"),
        (
            {"n_positions": 64},
            r"wpe.weight has shape \(256, 12\) where config.json says \(64, 12\)",
        ),
        ({"n_layer": 3}, "lacks the tensor h.2.ln_1.weight"),
        ({"eos_token_id": 5}, "does not belong to its model"),
    ],
)
def test_unsupported_scorers(tmp_path, change, sentence):
    with pytest.raises(UserError, match=sentence):
        gpt2.load(write_scorer(tmp_path / "x", **change))


def test_missing_and_damaged_scorer_files(tmp_path, scorer):
    with pytest.raises(UserError, match="has no readable config.json"):
        gpt2.load(tmp_path / "nowhere")
    folder = write_scorer(tmp_path / "x")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-8])
    with pytest.raises(UserError, match="not a readable safetensors"):
        gpt2.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="is missing"):
        gpt2.load(folder)
    with pytest.raises(UserError, match="at most 256 tokens at once, not 300"):
        scorer.nlls(random_tokens(1, 300))


def test_which_tokens_the_official_metric_counts():
    rows = np.array([[1, 9, 2, 9, 3], [9, 1, 9, 2, 3], [1, 2, 3, 4, 9], [9, 9, 9, 9, 9]])
    expected = [[1, 1, 0, 1], [1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]
    np.testing.assert_array_equal(gp.official_valid(rows, 9), np.array(expected, bool))


def test_official_score_is_over_whole_batches(scorer):
    tokens = random_tokens(7, 12)
    mask = np.ones_like(tokens)
    nlls, valid = scorer.nlls(tokens), gp.official_valid(tokens, EOS)
    for batch_size, rows in ((3, 6), (8, 7), (7, 7), (1, 7)):
        score = gp.official_from_ids(scorer, tokens, mask, batch_size)
        assert score.samples == rows and score.tokens == valid[:rows].sum()
        expected = nlls[:rows][valid[:rows]].sum()
        np.testing.assert_allclose(score.nll, expected, rtol=1e-5)
        assert score.perplexity == pytest.approx(math.exp(expected / score.tokens), rel=1e-4)


def test_official_rows_beyond_the_context_are_scored_in_pieces(scorer):
    tokens = random_tokens(2, POSITIONS + 30)
    score = gp.official_from_ids(scorer, tokens, np.ones_like(tokens), 2)
    left, right = tokens[:, :POSITIONS], tokens[:, POSITIONS:]
    expected = sum(scorer.nlls(p)[gp.official_valid(p, EOS)].sum() for p in (left, right))
    np.testing.assert_allclose(score.nll, expected, rtol=1e-5)


def test_official_texts_are_cut_and_padded(scorer):
    score = gp.official(scorer, ["abcdef", "abc", "a<|endoftext|>b"], max_length=5, batch_size=3)
    assert score.tokens == 4 + (2 + 1) + (1 + 1)  # cut; an end; its own end, padding not counted
    assert math.isnan(gp.official(scorer, [], 5).perplexity)
    assert math.isnan(gp.official(scorer, ["", ""], 5).perplexity)


def test_clean_score_is_the_mean_over_every_token(scorer):
    texts = ["hello there", "x", "", "a longer text\nwith lines" * 3]
    total, count = 0.0, 0
    for text in texts:
        row = np.array([[EOS, *scorer.tokenizer.encode(text)]], np.int32)
        if row.shape[1] > 1:
            total += scorer.nlls(row).sum()
            count += row.shape[1] - 1
    for batch_size in (1, 8):
        score = gp.clean(scorer, texts, batch_size)
        assert (score.tokens, score.samples) == (count, 3)
        np.testing.assert_allclose(score.nll, total, rtol=1e-5)
    assert math.isnan(gp.clean(scorer, ["", ""]).perplexity)


@pytest.mark.parametrize("length", [2, 7, 8, 9, 12, 13, 40])
def test_windows_score_each_token_once_with_enough_context(length):
    ids, scored = list(range(length)), []
    for window, new in gp._windows(ids, 8):
        assert len(window) <= 8 and window == ids[window[0] : window[-1] + 1]
        assert len(window) - new >= (1 if window[0] == 0 else 4)
        scored += window[len(window) - new :]
    assert scored == ids[1:]


def test_clean_score_of_a_long_text(scorer):
    text = "".join(chr(97 + i % 26) for i in range(POSITIONS + 40))
    ids = [EOS, *scorer.tokenizer.encode(text)]
    first = scorer.nlls(np.array([ids[:POSITIONS]])).sum()
    last = scorer.nlls(np.array([ids[-POSITIONS:]]))[0, -41:].sum()
    score = gp.clean(scorer, [text])
    assert score.tokens == POSITIONS + 40
    np.testing.assert_allclose(score.nll, first + last, rtol=1e-5)


def test_sample_entropy_closed_forms():
    rows = np.array([[5, 5, 5, 5], [1, 2, 3, 4], [1, 1, 2, 2], [7, 7, 7, 8]])
    quarter = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    expected = [0.0, math.log(4), math.log(2), quarter]
    np.testing.assert_allclose(gp.sample_entropy(rows), expected, atol=1e-15)


def test_perplexity_of_extreme_scores():
    assert gp.Score(2000.0, 1, 1).perplexity == math.inf
    assert (gp.Score(1.0, 2, 1) + gp.Score(3.0, 2, 1)).perplexity == pytest.approx(math.e)


def test_evaluator_yields_its_columns(scorer):
    tokenizer = Gpt2({t: i for i, t in enumerate([*ALPHABET, "<|endoftext|>"])}, [])
    body = tokenizer.encode("one two .")
    rows = np.array([[EOS, *body, EOS, *body[:3], EOS], [EOS, *body, *body[:4], EOS]], np.int32)
    assert gp.clean_texts(tokenizer, rows) == ["one two .\none", "one two .one"]
    written = "<|endoftext|>one two.<|endoftext|>one<|endoftext|>"
    assert gp.official_texts(tokenizer, rows)[0] == written
    evaluator = gp.GenerativePerplexity(scorer, tokenizer)
    values = dict(evaluator(rows))
    assert list(values) == [column.key for column in evaluator.columns]
    expected = gp.clean(scorer, ["one two .\none", "one two .one"]).perplexity
    assert values["gen_ppl"] == pytest.approx(expected, rel=1e-5)
    assert values["gen_ppl_official"] != values["gen_ppl"]


def test_recorded_numbers(shared):
    scorer = gpt2.load(shared / "golden/text/tiny_gpt2")
    recorded = np.load(shared / "golden/text/generative_perplexity.npz")
    for name in ("ids", "text"):
        tokens = recorded[f"in/{name}/input_ids"]
        mask = recorded[f"in/{name}/model_attention_mask"]
        count = len(recorded[f"out/{name}/nlls"])
        nlls = scorer.nlls(tokens[:count], mask[:count])
        np.testing.assert_allclose(nlls, recorded[f"out/{name}/nlls"], atol=1e-5)
        valid = gp.official_valid(tokens[:count], scorer.eos_id)
        np.testing.assert_array_equal(valid, recorded[f"out/{name}/valid"])
        dense = gpt2.log_probs(scorer.params, scorer.config, tokens[:2], mask[:2])
        np.testing.assert_allclose(dense, recorded[f"out/{name}/model_log_probs"], atol=1e-5)
        batch_size = int(recorded[f"out/{name}/batch_size"])
        score = gp.official_from_ids(scorer, tokens, mask, batch_size)
        assert score.perplexity == pytest.approx(
            float(recorded[f"out/{name}/perplexity"]), rel=2e-6
        )
    cases = json.loads((shared / "golden/manifest.json").read_text())["cases"]
    texts = next(c["texts"] for c in cases if c["case"] == "text/generative_perplexity")
    score = gp.official(scorer, texts, max_length=16, batch_size=4)
    assert score.perplexity == pytest.approx(float(recorded["out/text/perplexity"]), rel=2e-6)


def test_recorded_entropies(shared):
    recorded = np.load(shared / "golden/text/sample_entropy.npz")
    names = [key.removeprefix("in/") for key in recorded if key.startswith("in/")]
    for name in names:
        entropies = gp.sample_entropy(recorded[f"in/{name}"])
        np.testing.assert_allclose(entropies, recorded[f"out/{name}/per_sample"], atol=1e-6)
        assert entropies.mean() == pytest.approx(float(recorded[f"out/{name}/mean"]), abs=1e-6)
    assert len(names) == 5
