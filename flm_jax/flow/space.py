"""The state space: where ``x_t = (1 - t) * eps + t * e_y`` lives in memory.

`OneHot` is the paper's own space, arrays (B, L, V); it is the oracle. `Projected` keeps only what
the networks can see, ``h = x @ T`` with ``T = [E_1 E_2 ...]`` (V, W) the embedding tables of all
networks side by side. Every update of x is linear, so h follows exactly, and noise is drawn where
it is seen:

    eps @ T ~ N(0, T'T)   =   z @ R',   z ~ N(0, I_W),   R = chol(T'T + eta * I)

A small eta keeps the factor finite when tables coincide (student = teacher at the start of
distillation).

**Gradient.** With g the cotangent of ``z @ R'``, the gradient of the dense objective in
expectation is ``dT = T R^-T (z'g)``, summed over tokens: given z, the dense noise has mean ``z
R^-1 T'``, and the rest of it is invisible to every network (Rao-Blackwell: variance falls by
about V / W). Differentiating through the Cholesky factor would be another, wrong direction for
objectives with stopped gradients, because a square root is defined only up to a rotation.

Spaces are built from the tables inside the differentiated function, so that gradients reach them.
"""

import abc
import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from flm_jax.contracts import Contract
from flm_jax.flow.posterior import Combination, total

HIGHEST = jax.lax.Precision.HIGHEST  # the default on accelerators is TF32 or bfloat16
JITTER = 1e-5  # eta relative to the mean diagonal of the Gram matrix
JITTER_TRIES = 6


def per_token(x: jax.Array | float) -> jax.Array:
    """A coefficient, (), (B,) or (B, L), ready to multiply (B, L, anything)."""
    x = jnp.asarray(x)
    return x.reshape(x.shape + (1,) * (3 - x.ndim)) if x.ndim else x


def draw_noise(keys_B: jax.Array, length: int, width: int) -> jax.Array:
    """Standard normals float32 (B, L, width), one key per sequence.

    A sequence's noise depends on its own key only: not on the batch, the accumulation or the
    devices.
    """
    return jax.vmap(lambda key: jax.random.normal(key, (length, width), jnp.float32))(keys_B)


@dataclasses.dataclass(frozen=True)
class Space(Contract, unfinished=True):
    """Where states live. ``tables`` maps the role of a network to its embedding table (V, D).

    A state is an array (B, L, noise_width); only its own space knows what it holds.
    """

    tables: Mapping[str, jax.Array]

    @property
    @abc.abstractmethod
    def noise_width(self) -> int:
        """Numbers of raw noise per token."""

    @abc.abstractmethod
    def from_dense(self, noise_BLV: jax.Array) -> jax.Array:
        """The raw noise of this space that stands for dense noise (B, L, V)."""

    @abc.abstractmethod
    def scatter(self, noise: jax.Array, scale: jax.Array | float = 1.0) -> jax.Array:
        """The state made of raw noise alone, times ``scale``."""

    @abc.abstractmethod
    def clean(self, tokens_BL: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
        """The state e_y of tokens, at t = 1."""

    @abc.abstractmethod
    def mean(self, combination: Combination) -> jax.Array:
        """A combination of distributions over the tokens as a state."""

    @abc.abstractmethod
    def view(self, state: jax.Array, role: str) -> jax.Array:
        """What the network in this role sees: h = x @ E, (B, L, D)."""

    def noise(self, keys_B: jax.Array, length: int) -> jax.Array:
        """Raw noise (B, L, noise_width), to be stored among the draws of a loss or sampler."""
        return draw_noise(keys_B, length, self.noise_width)

    def corrupt(self, noise: jax.Array, tokens_BL: jax.Array, t: jax.Array) -> jax.Array:
        """x_t = (1 - t) * noise + t * e_token; t is (B,) or (B, L)."""
        clean = self.clean(tokens_BL, noise.dtype)
        return self.scatter(noise, 1.0 - t) + per_token(t) * clean

    def advance(
        self,
        state: jax.Array,
        a: jax.Array | float,
        b: jax.Array | float,
        combination: Combination,
    ) -> jax.Array:
        """a * x + b * combination; a and b are scalars, (B,) or (B, L)."""
        return per_token(a) * state + per_token(b) * self.mean(combination)

    def perturb(self, state: jax.Array, noise: jax.Array, scale: jax.Array | float) -> jax.Array:
        """x + scale * noise."""
        return state + self.scatter(noise, scale)


@dataclasses.dataclass(frozen=True)
class OneHot(Space):
    """Dense states (B, L, V)."""

    @property
    def noise_width(self) -> int:
        return next(iter(self.tables.values())).shape[0]

    def from_dense(self, noise_BLV: jax.Array) -> jax.Array:
        return noise_BLV

    def scatter(self, noise: jax.Array, scale: jax.Array | float = 1.0) -> jax.Array:
        return per_token(scale) * noise

    def clean(self, tokens_BL: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
        return jax.nn.one_hot(tokens_BL, self.noise_width, dtype=dtype)

    def mean(self, combination: Combination) -> jax.Array:
        return combination.dense()

    def view(self, state: jax.Array, role: str) -> jax.Array:
        return jnp.matmul(state, self.tables[role].astype(state.dtype))


@dataclasses.dataclass(frozen=True)
class Projected(Space):
    """States h = x @ T, (B, L, W)."""

    @property
    def distinct_tables(self) -> tuple[jax.Array, ...]:
        """The distinct tables, whose columns side by side are T. No copy of them is made."""
        return tuple(self.tables[role] for role in self._columns())

    @property
    def noise_width(self) -> int:
        return sum(table.shape[1] for table in self.distinct_tables)

    def from_dense(self, noise_BLV: jax.Array) -> jax.Array:
        """z = n @ T @ R^-T: the raw noise whose state is n @ T (exactly so as eta -> 0)."""
        factor_WW = cholesky_factor(gram(self.distinct_tables))
        seen = jnp.concatenate(
            [
                jnp.matmul(noise_BLV, wide(table), precision=HIGHEST)
                for table in self.distinct_tables
            ],
            -1,
        )
        flat = jax.scipy.linalg.solve_triangular(
            factor_WW, seen.reshape(-1, seen.shape[-1]).T, lower=True
        ).T
        return flat.reshape(seen.shape)

    def scatter(self, noise: jax.Array, scale: jax.Array | float = 1.0) -> jax.Array:
        return per_token(scale) * project_noise(self.distinct_tables, noise)

    def clean(self, tokens_BL: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
        clean = jnp.concatenate([table[tokens_BL] for table in self.distinct_tables], axis=-1)
        return clean.astype(dtype)

    def mean(self, combination: Combination) -> jax.Array:
        return combination.mean(*self.distinct_tables)

    def view(self, state: jax.Array, role: str) -> jax.Array:
        columns = self._columns()
        if role not in columns:  # the same array under another role
            role = next(other for other in columns if self.tables[other] is self.tables[role])
        start, width = columns[role]
        return state[..., start : start + width]

    def _columns(self) -> dict[str, tuple[int, int]]:
        """role -> (first column, width) of every distinct table inside the joint one."""
        columns, seen, start = {}, [], 0
        for role, table in self.tables.items():
            if any(table is other for other in seen):
                continue
            seen.append(table)
            columns[role] = (start, table.shape[1])
            start += table.shape[1]
        return columns


def without_gradients(space: Space) -> Space:
    """The same space; nothing computed in it has a gradient to the tables."""
    stopped = {id(table): jax.lax.stop_gradient(table) for table in space.tables.values()}
    tables = {role: stopped[id(table)] for role, table in space.tables.items()}
    return dataclasses.replace(space, tables=tables)


SPACES: dict[str, type[Space]] = {"onehot": OneHot, "projected": Projected}


def choose(name: str, vocab_size: int, width: int) -> type[Space]:
    """The space of that name; "auto" takes `Projected` if and only if V > 2 W."""
    if name == "auto":
        name = "projected" if vocab_size > 2 * width else "onehot"
    return SPACES[name]


def wide(table: jax.Array) -> jax.Array:
    """The table in at least float32."""
    return table.astype(jnp.promote_types(table.dtype, jnp.float32))


def gram(tables: Sequence[jax.Array]) -> jax.Array:
    """T'T (W, W) of tables (V, D) side by side; at least float32, full precision.

    One product for every pair, read from where the tables are: nothing else of the vocabulary's
    size exists. Where a tensor axis shares the vocabulary, every device sums its part; an fsdp axis
    shares the columns, and the tables are gathered.
    """
    tables = [wide(table) for table in tables]
    # As one operation, without a transposed copy: the sums are then the same ones whether it is
    # compiled alone or within a program. Two factors of a nearly singular matrix that differ in
    # the last digit of its entries differ in the third digit of their last columns.
    blocks = [
        [jnp.einsum("vi,vj->ij", a, b, precision=HIGHEST) for b in tables[i:]]
        for i, a in enumerate(tables)
    ]
    rows = [
        jnp.concatenate([*(blocks[j][i - j].T for j in range(i)), *blocks[i]], axis=1)
        for i in range(len(tables))
    ]
    return jnp.concatenate(rows, axis=0)


def cholesky_factor(gram_WW: jax.Array) -> jax.Array:
    """Lower R (W, W) with R R' = T'T + eta * diag(u), finite; of T'T.

    eta is the smallest of 1e-5, 1e-4 ... that suffices. u is the mean diagonal of T'T, but for each
    column at most ten times its own: or else one huge column would add noise to all others. Float32
    or float64.
    """
    # A table of zeros (a hand-made or broken one) still gets a finite, tiny factor.
    diagonal_W = jnp.maximum(jnp.diagonal(gram_WW), jnp.finfo(gram_WW.dtype).tiny * 1e6)
    unit_W = jnp.minimum(jnp.mean(diagonal_W), 10.0 * diagonal_W)

    def attempt(jitter):
        return jnp.linalg.cholesky(gram_WW + jitter * jnp.diag(unit_W))

    def failed(carry):
        jitter, factor = carry
        return ~jnp.all(jnp.isfinite(factor)) & (jitter < JITTER * 10.0**JITTER_TRIES)

    def grow(carry):
        jitter, _ = carry
        return jitter * 10.0, attempt(jitter * 10.0)

    jitter = jnp.asarray(JITTER, gram_WW.dtype)
    return jax.lax.while_loop(failed, grow, (jitter, attempt(jitter)))[1]


@functools.partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["flags"])
@dataclasses.dataclass(frozen=True)
class Learned:
    """Which tables have a gradient: known while tracing, so no array among the residuals."""

    flags: tuple[bool, ...]


@jax.custom_vjp
def project_noise(tables: tuple[jax.Array, ...], z_BLW: jax.Array) -> jax.Array:
    """z @ R' (B, L, W), distributed as eps @ T; gradient in T as at the top of this file."""
    return jnp.matmul(z_BLW, cholesky_factor(gram(tables)).T, precision=HIGHEST)


def _project_forward(tables, z_BLW):
    learned = tuple(table.perturbed for table in tables)
    tables, z_BLW = tuple(table.value for table in tables), z_BLW.value
    factor_WW = cholesky_factor(gram(tables))
    seen_BLW = jnp.matmul(z_BLW, factor_WW.T, precision=HIGHEST)
    return seen_BLW, (tables, Learned(learned), factor_WW, z_BLW)


def _project_backward(residuals, g_BLW):
    if isinstance(g_BLW, SymbolicZero):
        return None, None
    tables, learned, factor_WW, z_BLW = residuals
    correlation_WW = jnp.einsum("blw,blx->wx", z_BLW, g_BLW, precision=HIGHEST)
    mixing_WW = jax.scipy.linalg.solve_triangular(factor_WW.T, correlation_WW, lower=False)
    ends = list(itertools.accumulate(table.shape[1] for table in tables))
    rows = jnp.split(mixing_WW, ends[:-1], axis=0)
    d_tables = []
    for i, table in enumerate(tables):
        d_table = None
        if learned.flags[i]:  # one of two, when a student learns from a teacher
            columns = slice(ends[i] - table.shape[1], ends[i])
            d_table = total(
                jnp.matmul(wide(other), mixing[:, columns], precision=HIGHEST)
                for other, mixing in zip(tables, rows, strict=True)
            ).astype(table.dtype)
        d_tables.append(d_table)
    return tuple(d_tables), jnp.matmul(g_BLW, factor_WW, precision=HIGHEST)


project_noise.defvjp(_project_forward, _project_backward, symbolic_zeros=True)
