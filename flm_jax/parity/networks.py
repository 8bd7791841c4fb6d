"""The recorded networks: our model and parameters from official names and a case's options."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax import config
from flm_jax.interop import hub_layout, layout
from flm_jax.models import dit
from flm_jax.parity.goldens import Case, GoldenError

ATTENTION_CAP = 50.0  # no recorded run has another one; a case may say "softcap"
LOGIT_CAP = {"apr": 30.0, "feb": 0.0}
HEAD_CHUNK = 16


def state(case: Case, prefix: str = "param/") -> dict[str, np.ndarray]:
    """The official parameters below a prefix, without the rotary buffer."""
    return {n: a for n, a in case.under(prefix).items() if n != layout.INV_FREQ}


def logit_cap(case: Case) -> float:
    """The soft cap of the logits: what the case says, else what its version has; 0 = none."""
    if "logit_cap" in case.config:
        return float(case.config["logit_cap"] or 0.0)
    if case.entry.get("version") not in LOGIT_CAP:
        raise GoldenError("neither a logit cap nor a version that implies one is recorded")
    return LOGIT_CAP[case.entry["version"]]


def model(
    case: Case, sizes: layout.Sizes, cap: float, heads: int | None = None, dtype: str = "float32"
) -> dit.Model:
    """The architecture of a network of these sizes; dropout comes from the case (README: 0)."""
    settings = config.Model(
        width=sizes.hidden_size,
        depth=sizes.depth,
        heads=case.option("n_heads") if heads is None else heads,
        cond_dim=sizes.cond_dim,
        mlp_ratio=sizes.mlp_ratio,
        dropout=float(case.config.get("dropout", 0.0)),
        attention_cap=float(case.config.get("softcap", ATTENTION_CAP)),
        logit_cap=cap,
        two_times=sizes.two_times,
        loss_weighting=sizes.loss_weighting,
        dtype=dtype,
        remat=False,
        head_chunk=HEAD_CHUNK,
    )
    return dit.build(settings, sizes.vocab_size)


def sizes_of(tensors: dict[str, np.ndarray]) -> layout.Sizes:
    return layout.sizes_of({name: array.shape for name, array in tensors.items()}, "the case")


def params(tensors: dict[str, np.ndarray]) -> Any:
    """Our parameter tree in the float type of the current precision."""
    return jax.tree.map(wide, hub_layout.to_params(tensors))


def wide(array: Any) -> jax.Array:
    """A recorded array on the device; floats in the widest type that is switched on."""
    array = np.asarray(array)
    return jnp.asarray(array, float) if array.dtype.kind == "f" else jnp.asarray(array)


def official(tree: Any, sizes: layout.Sizes) -> dict[str, np.ndarray]:
    """A tree shaped like parameters (a gradient, an average) under the official names.

    Unlike `hub_layout.from_params` it keeps float64.
    """
    named = {}
    for entry in layout.entries(sizes):
        leaf = tree
        for key in entry.path:
            leaf = leaf[key]
        array = np.asarray(leaf if entry.layer is None else leaf[entry.layer])
        named[entry.name] = array.T if entry.transpose else array
    return named
