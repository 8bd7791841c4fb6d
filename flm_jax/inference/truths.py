"""A known truth from disk: an autoregressive run of ours, a GPT-2 folder, or a small Llama file."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from flm_jax.data import Data
from flm_jax.errors import UserError
from flm_jax.evals import gpt2
from flm_jax.evals.causal import CausalTruth
from flm_jax.flow.net import CausalNet
from flm_jax.inference.loading import load, place
from flm_jax.interop import llama_file, llama_vocabulary
from flm_jax.models.decoder import decoder


def load_truth(path: str | pathlib.Path) -> CausalTruth:
    """What draws text and knows its likelihood exactly.

    Args:
      path: the workdir of a run with the loss "autoregressive"; a GPT-2 folder in the Hugging Face
        layout; or a file of llama2.c with its vocabulary (tokSIZE.bin or tokenizer.bin) beside it.

    Raises UserError if there is no such model, or it is not autoregressive.
    """
    source = place(path)
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
        size = scorer.tokenizer.vocab_size
        if size < scorer.config.vocab_size:  # a table that is filled up: no text has those ids
            net = net.with_outputs(np.arange(size))
        return CausalTruth(net, scorer.tokenizer, scorer.config.positions + 1, scorer.name)
    model = load(source)
    net = model.net(model.params)
    if not isinstance(net, CausalNet):
        raise UserError(
            f"{source} was trained with the loss {model.config.loss.name!r}, whose likelihood is "
            "not exact; give a run of the loss 'autoregressive', a GPT-2 folder or a Llama file"
        )
    return CausalTruth(net, model.tokenizer, model.config.data.length, source.name)


def known_truth(given: str | None, data: Data | None) -> CausalTruth | None:
    """The truth that is asked for, or the one that the training rows were drawn from.

    Raises UserError if the given one cannot be loaded; for the rows' own that is a notice.
    """
    if given:
        return load_truth(given)
    origin = {} if data is None else data.rows["train"].manifest
    if "truth" not in origin:
        return None
    remedy = "flm evaluate --truth=PATH takes it from where it is now"
    try:
        truth = load_truth(origin["truth_path"])
    except UserError as error:
        logging.warning("the truth of the rows cannot be loaded (%s); %s", error, remedy)
        return None
    if truth.fingerprint != origin["truth"]:
        changed = "%s is not what the rows were drawn from any more; %s"
        logging.warning(changed, origin["truth_path"], remedy)
        return None
    return truth


def _is_gpt2(folder: pathlib.Path) -> bool:
    try:
        return "n_embd" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
