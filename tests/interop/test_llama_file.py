"""Llama models in one file: what is written is read, what is not one is refused, real numbers."""

import gzip
import json
import re
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.errors import UserError
from flm_jax.evals.causal import CausalTruth
from flm_jax.interop import llama_file, llama_vocabulary
from flm_jax.models.decoder import decoder

SIZES = 8, 12, 2, 4, 2, 270, 16  # width, hidden, layers, heads, shared heads, vocabulary, length


def write(path, sizes=SIZES, numbers=None, seed=0):
    width, hidden, depth, heads, shared, vocab, length = sizes
    k = width // heads
    shapes = [
        (abs(vocab), width), (depth, width), (depth, width, width), (depth, shared * k, width),
        (depth, shared * k, width), (depth, width, width), (depth, width), (depth, hidden, width),
        (depth, width, hidden), (depth, hidden, width), (width,), (2, length, k // 2),
    ]  # fmt: skip
    shapes += [(-vocab, width)] if vocab < 0 else []
    draw = np.random.default_rng(seed)
    arrays = [draw.normal(size=shape).astype("<f4") for shape in shapes]
    content = struct.pack("<7i", *sizes) + b"".join(a.tobytes() for a in arrays)
    path.write_bytes(content[: 28 + 4 * numbers] if numbers is not None else content)
    return arrays


def vocabulary(path, pieces):
    rows = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(f"<0x{i:02X}>".encode() for i in range(256))]
    rows += [piece.encode() for piece in pieces]
    body = b"".join(
        struct.pack("<fi", -max(i - 259.0, 0.0), len(r)) + r for i, r in enumerate(rows)
    )
    path.write_bytes(struct.pack("<i", max(map(len, rows))) + body)
    return path


def test_arrays_land_where_they_belong(tmp_path):
    arrays = write(tmp_path / "m.bin")
    params, shape, length = llama_file.read(tmp_path / "m.bin")
    assert llama_file.is_llama_file(tmp_path / "m.bin") and length == 16
    assert (shape.heads, shape.shared_heads, shape.centred) == (4, 2, False)
    blocks, (table, norm_1, wq, wk, wv, wo, norm_2, w1, w2, w3, norm, _) = params["blocks"], arrays
    qkv = np.concatenate([wq, wk, wv], 1).transpose(0, 2, 1)
    for got, wanted in (
        (params["embed"]["table"], table), (params["head"]["kernel"], table.T),
        (blocks["norm_1"]["scale"], norm_1), (blocks["qkv"]["kernel"], qkv),
        (blocks["out"]["kernel"], wo.transpose(0, 2, 1)), (blocks["norm_2"]["scale"], norm_2),
        (blocks["mlp_gate"]["kernel"], w1.transpose(0, 2, 1)),
        (blocks["mlp_out"]["kernel"], w2.transpose(0, 2, 1)),
        (blocks["mlp_in"]["kernel"], w3.transpose(0, 2, 1)), (params["norm"]["scale"], norm),
    ):  # fmt: skip
        np.testing.assert_array_equal(got, wanted)
    *_, head = write(tmp_path / "m.bin", (*SIZES[:5], -270, 16))
    np.testing.assert_array_equal(llama_file.read(tmp_path / "m.bin")[0]["head"]["kernel"], head.T)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "m.bin"
    write(path, numbers=500)
    with pytest.raises(UserError, match="holds 500 numbers, but its sizes ask for"):
        llama_file.read(path)
    assert not llama_file.is_llama_file(path)
    for content in (b"", b"text that is no model at all", struct.pack("<7i", 8, 8, 1, 3, 1, 9, 4)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{re.escape(str(path))} is not a Llama model"):
            llama_file.read(path)
    with pytest.raises(UserError, match="is not a Llama model"):
        llama_file.read(tmp_path / "nowhere")
    assert not llama_file.is_llama_file(tmp_path)


def test_the_vocabulary_merges_by_score_and_spells_what_it_lacks(tmp_path):
    """ " a", "b", " ab": the pair with the highest score (the smallest number) is merged first."""
    pieces = [" ", "a", "b", " a", "ab", "aba"]
    tokenizer = llama_vocabulary.read(vocabulary(tmp_path / "tok265.bin", pieces))
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (265, 1, 2)
    ids = {piece: 259 + i for i, piece in enumerate(pieces)}
    assert tokenizer.encode("ab") == [ids[" a"], ids["b"]]  # " a" before "ab"
    assert tokenizer.encode("bab") == [ids[" "], ids["b"], ids["ab"]]
    assert tokenizer.encode("é") == [ids[" "], 3 + 0xC3, 3 + 0xA9]
    for text in ("ab ba", "é ab"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert llama_vocabulary.beside(tmp_path / "m.bin", 265).name == "tok265.bin"
    assert llama_vocabulary.beside(tmp_path / "m.bin", 266).name == "tokenizer.bin"


def test_a_damaged_vocabulary_is_refused(tmp_path):
    path = vocabulary(tmp_path / "tok.bin", [" "])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="longer than the file"):
        llama_vocabulary.read(path)
    path.write_bytes(b"\0\0\0\0")
    with pytest.raises(UserError, match="only 0 pieces"):
        llama_vocabulary.read(path)
    with pytest.raises(UserError, match="cannot be read .*tokenizer.bin"):
        llama_vocabulary.read(tmp_path / "nowhere")


def test_the_recorded_numbers_of_stories260k(shared):
    folder = shared / "data/scorer/stories260K"
    recorded = json.loads((folder / "reference.json").read_text())
    params, shape, length = llama_file.read(folder / "stories260K.bin")
    net = decoder(jax.tree.map(jnp.asarray, params), shape)
    tokenizer = llama_vocabulary.read(llama_vocabulary.beside(folder / "stories260K.bin", 512))
    assert [1, *tokenizer.encode(recorded["prompt"])] == recorded["prompt_ids"]
    ids = np.array([recorded["greedy_ids_from_BOS"]])
    assert recorded["greedy_text"].startswith(tokenizer.decode(ids[0, :60].tolist()))
    posterior = net(net.table[ids], jnp.zeros(1)).posterior
    logits = np.asarray(posterior.head.raw(posterior.features_BLD))[0]
    np.testing.assert_allclose(logits[0, :8], recorded["logits_after_BOS_first8"], atol=2e-5)
    np.testing.assert_array_equal(logits[:-1].argmax(-1), ids[0, 1:])
    truth = CausalTruth(net, tokenizer, length + 1, "stories260K")
    text = gzip.decompress((shared / "data/tinystories/valid.txt.gz").read_bytes()).decode()
    story = re.sub("\n+", "\n", text.partition("<|endoftext|>")[0].strip())
    ids = np.array([[1, *tokenizer.encode(story)]])
    first = recorded["first_stories"][0]
    assert ids.shape[1] == 1 + first["story_tokens"]
    assert truth.score(ids).sum() == pytest.approx(first["story_nll_sum"], abs=2e-3)
