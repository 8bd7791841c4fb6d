"""The first parameters of a network that starts from another one."""

import jax.numpy as jnp

from flm_jax.flow.trees import Params

# Parts that only one of the two may have.
DROPPED = ("time_embed_to", "loss_weight", "estimate")
OPTIONAL = (*DROPPED, "positions")  # parts that the source may lack


def student_from(
    fresh: Params, source: Params, correction: bool = False, second_time_heard: bool = False
) -> Params:
    """The parameters of ``source`` in a network shaped like ``fresh``.

    A second time embedder that the source lacks gets a last layer of zeros: the flow map starts
    as the denoiser it comes from, whatever its second time. A learned loss weighting stays fresh,
    and so do learned positions and self-conditioning, which are zero at first.

    Args:
      fresh: freshly drawn parameters of the new network.
      source: those of the other one, a denoiser of one time or a flow map.
      correction: the network is the correction g of the two-model method: its head and final
        modulation are zero, so that it starts as g = 0.
      second_time_heard: a second time embedder that the source lacks stays fresh, last layer and
        all: the official students of masked diffusion models. Others start as their source.

    Names or shapes that do not fit are left to the caller to find (`training.sources.adopt`).
    """
    if "kernel" in fresh["head"]:
        source = untied(source)
    params = {name: tree for name, tree in source.items() if name in fresh or name not in DROPPED}
    for name in OPTIONAL:
        if name in fresh and name not in source:
            params[name] = fresh[name]
    if "time_embed_to" in fresh and "time_embed_to" not in source and not second_time_heard:
        params["time_embed_to"] = fresh["time_embed_to"] | {
            "out": zeros(fresh["time_embed_to"]["out"])
        }
    if correction:
        params["head"] = zeros(params["head"])
        params["final"] = params["final"] | {"modulation": zeros(params["final"]["modulation"])}
    return params


def without_mask(params: Params) -> Params:
    """The parameters of a masked diffusion model without its last token, the mask."""
    kept = {name: array[..., :-1] for name, array in params["head"].items()}
    return {**params, "embed": {"table": params["embed"]["table"][:-1]}, "head": kept}


def untied(params: Params) -> Params:
    """The same network with a head of its own, if its head is tied to the table."""
    if "kernel" in params["head"]:
        return params
    kernel = jnp.array(params["embed"]["table"].T)
    return {**params, "head": {**params["head"], "kernel": kernel}}


def zeros(tree: Params) -> Params:
    return {
        name: zeros(leaf) if isinstance(leaf, dict) else jnp.zeros_like(leaf)
        for name, leaf in tree.items()
    }
