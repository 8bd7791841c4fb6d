"""Which kernel attention takes, and those of tokamax, an optional library (the extra [kernels]).

Its "mosaic" kernels have a soft cap forward and backward on Hopper and Blackwell GPUs and on TPUs
(its Triton kernel forward only, cuDNN not at all). They have no forward-mode derivative, and JAX
does not divide them over devices.
"""

import importlib.util

import jax
import jax.numpy as jnp

from flm_jax import target
from flm_jax.errors import UserError
from flm_jax.models.settings import Settings
from flm_jax.target import Target

COMPUTE_CAPABILITIES = ("9.0", "10.0")  # of the GPUs that the kernels are written for
HEAD_WIDTHS = (64, 128)  # that "auto" gives to a kernel


def installed() -> bool:
    return importlib.util.find_spec("tokamax") is not None


def settle(model: Settings, forward_derivatives: bool, long: bool) -> str:
    """What "attention" of a network's settings means here: "auto" is a kernel where that is safe.

    That is: bfloat16, heads of a width that kernels have, a loss that takes no forward derivatives,
    and TPUs with ``long`` sequences ("splash"), or tokamax installed and one device of a kind that
    it has kernels for. What remains "auto" is decided by the length (`attention.attend`). "tokamax"
    where it is not installed, and "splash" without TPUs, become "auto": a checkpoint trained with
    them is read anywhere (`config.validate` and `config.validate_devices` refuse to train).
    """
    chips = target.current()
    if model.attention == "tokamax":
        return "tokamax" if installed() else "auto"
    if model.attention == "splash":
        return "splash" if chips.platform == "tpu" else "auto"
    if model.attention != "auto" or forward_derivatives or model.dtype != "bfloat16":
        return model.attention
    if model.width // model.heads not in HEAD_WIDTHS:
        return "auto"
    if chips.platform == "tpu" and long:
        return "splash"
    return "tokamax" if installed() and chips.devices == 1 and supported(chips) else "auto"


def check(model: Settings) -> None:
    """Raises UserError where training with these settings would not have the kernel they name."""
    chips = target.current()
    if model.attention == "splash" and chips.platform != "tpu":
        raise UserError(
            f"model.attention='splash' is a kernel for TPUs but this is for {chips.device_kind}; "
            "set model.attention='auto' or 'chunked'"
        )


def supported(chips: Target) -> bool:
    """Whether tokamax has a kernel, forward and backward, for such devices."""
    return chips.platform == "tpu" or chips.compute_capability in COMPUTE_CAPABILITIES


def tokamax(
    q_BLHK: jax.Array,
    k_BMHK: jax.Array,
    v_BMHK: jax.Array,
    cap: float,
    visible_LM: jax.Array | None = None,
    causal: bool = False,
    implementation: str | None = None,
) -> jax.Array:
    """`attention.attend` by tokamax: its kernel, or on a CPU its plain form ("xla").

    Raises UserError where the library has no kernel for the device, shape or type.
    """
    from tokamax import dot_product_attention  # pyright: ignore[reportMissingImports]

    if implementation is None:
        implementation = "xla" if target.current().form == "cpu" else "mosaic"
    try:
        return dot_product_attention(
            q_BLHK,
            k_BMHK,
            v_BMHK,
            mask=None if visible_LM is None else visible_LM[None, None],
            is_causal=causal,
            logits_soft_cap=cap or None,
            implementation=implementation,
        ).astype(jnp.result_type(v_BMHK))
    except NotImplementedError as error:
        raise UserError(
            f"tokamax has no attention kernel {implementation!r} for {q_BLHK.dtype} {q_BLHK.shape} "
            f"on {target.current().device_kind} ({error}); set model.attention='auto' or 'chunked'"
        ) from None
