"""Flow language models in JAX: train and evaluate models that write text in few evaluations.

Shape legend (suffixes of variable names; a scalar has no suffix):

    B  sequences in the batch        L  positions of a sequence      V  vocabulary entries
    D  width of the backbone         W  width of all embedding tables side by side
    H  attention heads               K  width of one head            C  width of conditioning
    N  tokens, B*L flattened         S  sampler steps

Symbols follow the paper (arXiv 2602.16813): ``t`` is the interpolation time (0 = noise, 1 = data),
``tau`` the reparametrised time that the network sees, ``s <= u <= t`` the times of a flow map.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
    from flm_jax.errors import UserError
    from flm_jax.inference import FlowModel, Given, Samples, load

__all__ = ["FlowModel", "Given", "Samples", "UserError", "__version__", "load"]


def __getattr__(name: str):
    """Public names are imported when first used: `import flm_jax` itself is instant."""
    import importlib

    if name == "__version__":
        return _version()
    if name in __all__:
        module = "flm_jax.errors" if name == "UserError" else "flm_jax.inference"
        return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'flm_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("flm_jax")
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return "0+unknown"
