"""The clock: physical time ``t`` (0 = noise, 1 = data) and the time ``tau`` that the network sees.

For ``x_t = (1 - t) * eps + t * e_y`` the probability that the arg max of ``x_t`` is the clean
token is

    q(t) = E_z[ Phi(z + t / (1 - t)) ** (K - 1) ],          z ~ N(0, 1),   K = vocabulary size,

and ``tau(t) = K / (K - 1) * (q(t) - 1 / K)``, the accuracy corrected for chance (arXiv
2602.16813, time reparametrisation). Almost all of ``tau`` happens in a narrow window of ``t``:
for K = 30522 half of it lies between t = 0.77 and t = 0.83.

Tables follow the official recipe: 10 000 equidistant ``t``, a cubic spline through (t, tau) and
another one through the swapped, de-duplicated knots. They are built once on the host in float64.
On device the same splines are evaluated in float64 where asked for, else in float32 without
losing their accuracy: knots are kept as a float32 pair (high + low part), so that the distance of
``tau`` to its knot is exact, and the polynomial is in the normalised coordinate of its interval,
so that ``dt/dtau ~ 1e10`` near both ends never appears as a number. (A float32 spline on rounded
knots has duplicate knots and misses t(1) = 1 by 1e-4.)
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

KNOTS = 10_000
HERMITE_NODES = 100
SLOPE = 1e-10  # makes the tabulated tau strictly increasing where it is flat in float64


def decoding_accuracy(t: np.ndarray, vocab_size: int, quadrature: str) -> np.ndarray:
    """tau(t) by quadrature over z in float64; ``t`` of any shape in [0, 1].

    ``gauss_hermite`` (100 nodes) is the official rule, up to 9.2e-5 off; ``exact`` is a trapezoid
    rule on [-10, 14], converged to about 1e-12.
    """
    from scipy import special

    t = np.asarray(t, np.float64)
    if quadrature == "gauss_hermite":
        nodes, weights = np.polynomial.hermite.hermgauss(HERMITE_NODES)
        z, w = np.sqrt(2.0) * nodes, weights / np.sqrt(np.pi)
    elif quadrature == "exact":
        z = np.linspace(-10.0, 14.0, 2401)
        w = np.exp(-0.5 * z**2) / np.sqrt(2.0 * np.pi) * (z[1] - z[0])
    else:
        raise ValueError(f"clock quadrature is {quadrature!r}; choose 'gauss_hermite' or 'exact'")
    margin = t / np.maximum(1.0 - t, 1e-12)
    q = np.zeros_like(t)
    for z_j, w_j in zip(z, w, strict=True):
        q += w_j * np.exp((vocab_size - 1) * special.log_ndtr(z_j + margin))
    return vocab_size / (vocab_size - 1) * (q - 1.0 / vocab_size)


class Spline(NamedTuple):
    """A cubic spline as a pytree, ready for evaluation in one float type.

    ``knots`` (n,) rounded up to the type; ``low`` (n,) exact knot minus rounded knot; ``scale``
    (n,) one over the width of the interval; ``coefficients`` (4, n), highest power first, in the
    coordinate (x - knot) / width.
    """

    knots: jax.Array
    low: jax.Array
    scale: jax.Array
    coefficients: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """Value at ``x`` (any shape, same float type), held constant outside the knots."""
        i, u, c = self._local(x)
        value = ((c[0] * u + c[1]) * u + c[2]) * u + c[3]
        return jnp.clip(value, c[3], self.coefficients[3, i + 1])  # rounding keeps the order

    def derivative(self, x: jax.Array) -> jax.Array:
        i, u, c = self._local(x)
        return ((3.0 * c[0] * u + 2.0 * c[1]) * u + c[2]) * self.scale[i]

    def _local(self, x):
        i = jnp.clip(jnp.searchsorted(self.knots, x, side="right") - 1, 0, self.knots.size - 2)
        u = ((x - self.knots[i]) - self.low[i]) * self.scale[i]
        return i, jnp.clip(u, 0.0, 1.0), self.coefficients[:, i]


def _spline(x: np.ndarray, y: np.ndarray, dtype: np.dtype) -> Spline:
    """The not-a-knot cubic spline through float64 points, laid out for evaluation in ``dtype``."""
    from scipy import interpolate

    width = np.append(np.diff(x), 1.0)
    powers = np.array([[3], [2], [1], [0]])
    coefficients = np.zeros((4, x.size))
    coefficients[:, :-1] = interpolate.CubicSpline(x, y).c * width[:-1] ** powers
    coefficients[3, -1] = y[-1]
    knots = x.astype(dtype)
    # A point belongs to the interval whose exact knot is at or below it, so knots round upwards.
    knots = np.where(knots.astype(np.float64) < x, np.nextafter(knots, np.inf, dtype=dtype), knots)
    low = x - knots.astype(np.float64)
    tables = (knots, low, 1.0 / width, coefficients)
    with jax.ensure_compile_time_eval():  # real arrays, even if somebody builds it inside a trace
        return Spline(*(jnp.asarray(table.astype(dtype)) for table in tables))


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["forward", "inverse"], meta_fields=[]
)
class Clock:
    """tau <-> t for one vocabulary size; a pytree of tables. Build it with `build`.

    All methods take times of any shape in any float type and answer in that type, but at least
    float32. ``t(0) = 0`` and ``t(1) = 1`` exactly; both directions are monotone and never NaN.
    """

    def __init__(self, forward: Spline | None, inverse: Spline | None):
        self.forward = forward
        self.inverse = inverse

    def to_t(self, tau: jax.Array) -> jax.Array:
        """Physical time of the network's time."""
        return self._map(self.inverse, tau)

    def to_tau(self, t: jax.Array) -> jax.Array:
        """The network's time of the physical time."""
        return self._map(self.forward, t)

    @jax.jit
    def dtau_dt(self, t: jax.Array) -> jax.Array:
        """Derivative of the t -> tau spline at ``t`` (about 1e-10 beyond t = 0.92)."""
        t, dtype = _at_least_float32(t)
        if self.forward is None:
            return jnp.ones_like(t, dtype)
        return self.forward.derivative(t.astype(self.forward.knots.dtype)).astype(dtype)

    @jax.jit  # outside a compiled function one program, not one for each operation
    def _map(self, spline: Spline | None, x: jax.Array) -> jax.Array:
        x, dtype = _at_least_float32(x)
        if spline is None:
            return x.astype(dtype)
        return jnp.clip(spline(x.astype(spline.knots.dtype)), 0.0, 1.0).astype(dtype)


def _at_least_float32(x: jax.Array) -> tuple[jax.Array, jnp.dtype]:
    x = jnp.asarray(x)
    return x, jnp.promote_types(x.dtype, jnp.float32)


def identity() -> Clock:
    """The clock without reparametrisation: tau = t."""
    return Clock(None, None)


def build(vocab_size: int, quadrature: str = "gauss_hermite", dtype: Any = None) -> Clock:
    """The decoding-accuracy clock of a vocabulary of ``vocab_size`` >= 2 tokens.

    Tables are of ``dtype``; left out, float64 if x64 mode is on, else float32.
    """
    if vocab_size < 2:
        raise ValueError(f"a clock needs a vocabulary of at least 2 tokens, not {vocab_size}")
    t, tau = knots(vocab_size, quadrature)
    dtype = np.dtype(jnp.asarray(0.0).dtype if dtype is None else dtype)
    tau_unique, first = np.unique(tau, return_index=True)
    t_unique = t[first]
    return Clock(_spline(t, tau, dtype), _spline(tau_unique, t_unique, dtype))


@functools.lru_cache(maxsize=8)
def knots(vocab_size: int, quadrature: str = "gauss_hermite") -> tuple[np.ndarray, np.ndarray]:
    """(t, tau) float64 that the splines of `build` go through, both rising from 0 to 1."""
    t = np.linspace(0.0, 1.0, KNOTS)
    tau = decoding_accuracy(t, vocab_size, quadrature) + (t - 1.0) * SLOPE
    tau = np.clip(tau, 0.0, 1.0)
    if quadrature == "exact":  # quadrature error ~1e-13 must not break monotony where tau is flat
        tau = np.maximum.accumulate(tau)
    tau[-1] = 1.0
    return t, tau
