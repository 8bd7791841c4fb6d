"""Muon: the momentum of a block's matrices, with all its singular values made about equal.

A gradient of a matrix is mostly of low rank: a few directions take nearly all of Adam's step. Muon
(K. Jordan et al. 2024) moves all directions alike, by the matrix U V' of the momentum U S V'. It is
for matrices that map features to features; embeddings, head, norms, modulations and biases stay
with Adam. Steps are scaled to the root mean square of Adam's (Liu et al. 2025, arXiv 2502.16982),
so that one learning rate serves both.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flm_jax.training.selective import Selective, choose

MUON, ADAM = "muon", "adam"  # labels of `partitioned`
# Kernels of a block, stacked (depth, in, out), and how many matrices lie side by side in `out`.
MATRICES = {"qkv": 3, "attention_out": 1, "mlp_gate": 1, "mlp_in": 1, "mlp_out": 1}
MOMENTUM = 0.95
RMS = 0.2  # of an update whose learning rate is 1; that of Adam's is 0.2 to 0.4
# Five rounds of a x + (b y + c y^2) x with y = x x' lead singular values in (0, 1] to 0.7 .. 1.2.
_ROUNDS, _A, _B, _C = 5, 3.4445, -4.7750, 2.0315
_EPS = 1e-7


class MuonState(NamedTuple):
    """The running sum of gradients, one array for each matrix."""

    momentum: Any


def scale_by_muon() -> Selective:
    """Muon's direction for arrays named in `MATRICES`, of any leading axes, in float32."""

    def init(params):
        return MuonState(optax.tree.zeros_like(params))

    def update(updates, state, params=None, *, accept=True, **extra):
        del params, extra
        momentum = jax.tree.map(lambda m, g: MOMENTUM * m + g, state.momentum, updates)
        momentum = choose(accept, momentum, state.momentum)
        seen = jax.lax.optimization_barrier(momentum)  # updates in place, see optim.py
        ahead = jax.tree.map(lambda m, g: MOMENTUM * m + g, seen, updates)  # Nesterov's
        return jax.tree_util.tree_map_with_path(_direction, ahead), MuonState(momentum)

    return Selective(init, update)


def partitioned(adam: Selective) -> Selective:
    """Muon for the matrices of the blocks, ``adam`` for all other parameters."""
    both = optax.partition({MUON: scale_by_muon(), ADAM: adam}, _labels)
    return Selective(both.init, both.update)


def orthogonal(x: jax.Array) -> jax.Array:
    """About U V' of x = U S V', for matrices (..., m, n): singular values 0.7 to 1.2, zero ones 0.

    Newton-Schulz iterations with the coefficients of Muon's authors; products only.
    """
    tall = x.shape[-2] > x.shape[-1]
    x = jnp.swapaxes(x, -1, -2) if tall else x
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + _EPS)
    for _ in range(_ROUNDS):
        y = x @ jnp.swapaxes(x, -1, -2)
        x = _A * x + (_B * y + _C * y @ y) @ x
    return jnp.swapaxes(x, -1, -2) if tall else x


def _direction(path: tuple, x: jax.Array) -> jax.Array:
    """The update of one array (..., in, side by side * out), before the learning rate."""
    beside = MATRICES[_names(path)[-2]]
    apart = jnp.stack(jnp.split(x, beside, axis=-1))
    scale = RMS * max(apart.shape[-2:]) ** 0.5
    return scale * jnp.concatenate(list(orthogonal(apart)), axis=-1)


def _labels(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: _label(_names(path)), params)


def _label(names: tuple[str, ...]) -> str:
    is_matrix = names[0] == "blocks" and names[-1] == "kernel" and names[-2] in MATRICES
    return MUON if is_matrix else ADAM


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(str(key.key) for key in path)
