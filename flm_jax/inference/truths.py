"""A known truth from disk: an autoregressive run of ours, a GPT-2 folder, or a small Llama file."""

import json
import pathlib

import jax
import jax.numpy as jnp

from flm_jax.errors import UserError
from flm_jax.evals import gpt2
from flm_jax.evals.causal import CausalTruth
from flm_jax.flow.net import CausalNet
from flm_jax.host import folders
from flm_jax.inference.loading import load
from flm_jax.interop import llama_file, llama_vocabulary
from flm_jax.models.decoder import decoder


def load_truth(path: str | pathlib.Path) -> CausalTruth:
    """What draws text and knows its likelihood exactly.

    Args:
      path: the workdir of a run with the loss "autoregressive"; a GPT-2 folder in the Hugging Face
        layout; or a file of llama2.c with its vocabulary (tokSIZE.bin or tokenizer.bin) beside it.

    Raises UserError if there is no such model, or it is not autoregressive.
    """
    source = folders.expanded(path)
    if source.is_file():
        params, shape, length = llama_file.read(source)
        size = params["embed"]["table"].shape[0]
        tokenizer = llama_vocabulary.read(llama_vocabulary.beside(source, size))
        if tokenizer.vocab_size != size:
            raise UserError(
                f"{source} has {size} tokens, but the vocabulary beside it {tokenizer.vocab_size}; "
                f"put its own there as tok{size}.bin"
            )
        net = decoder(jax.tree.map(jnp.asarray, params), shape)
        return CausalTruth(net, tokenizer, length + 1, source.stem)
    if _is_gpt2(source):
        scorer = gpt2.load(source)
        net = decoder(scorer.params, scorer.config.shape)
        return CausalTruth(net, scorer.tokenizer, scorer.config.positions + 1, scorer.name)
    model = load(source)
    net = model.net(model.params)
    if not isinstance(net, CausalNet):
        raise UserError(
            f"{source} was trained with the loss {model.config.loss.name!r}, whose likelihood is "
            "not exact; give a run of the loss 'autoregressive', a GPT-2 folder or a Llama file"
        )
    return CausalTruth(net, model.tokenizer, model.config.data.length, source.name)


def _is_gpt2(folder: pathlib.Path) -> bool:
    try:
        return "n_embd" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
