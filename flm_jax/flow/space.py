"""The state space: where ``x_t = (1 - t) * eps + t * e_y`` lives in memory.

`OneHot` is the paper's own space, arrays (B, L, V); it is the oracle. `Projected` keeps only what
the networks can see, ``h = x @ T`` with ``T = [E_1 E_2 ...]`` (V, W) the embedding tables of all
networks side by side. Every update of x is linear, so h follows exactly, and noise is drawn where
it is seen (`flow/noise.py`).

Spaces are built from the tables inside the differentiated function, so that gradients reach them.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Self

import jax
import jax.numpy as jnp

from flm_jax.contracts import Contract
from flm_jax.flow import noise as noise_lib
from flm_jax.flow.combination import Combination
from flm_jax.flow.randomness import normals


def per_token(x: jax.Array | float) -> jax.Array:
    """A coefficient, (), (B,) or (B, L), ready to multiply (B, L, anything)."""
    x = jnp.asarray(x)
    return x.reshape(x.shape + (1,) * (3 - x.ndim)) if x.ndim else x


@dataclasses.dataclass(frozen=True)
class Space(Contract, unfinished=True):
    """Where states live. ``tables`` maps the role of a network to its embedding table (V, D).

    A state is an array (B, L, noise_width); only its own space knows what it holds.
    """

    tables: Mapping[str, jax.Array]

    def constant(self) -> jax.Array | None:
        """What its noise needs that depends on the tables only; None if there is nothing."""
        return None

    def with_constant(self, constant: jax.Array | None) -> Self:
        """The same space with its `constant`, made before: where the tables do not change.

        Noise then has no gradient to the tables.
        """
        return self

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

    @abc.abstractmethod
    def steepest(self, gradient: jax.Array) -> jax.Array:
        """The change of x, as one of the state, that dense gradient ascent makes: steps of size 1.

        The gradient is with respect to the state. The dense noise is white, so that this is the
        direction in which a function rises most for a given loss of the noise's log-density.
        """

    def noise(self, keys_B: jax.Array, length: int) -> jax.Array:
        """Raw noise (B, L, noise_width), to be stored among the draws of a loss or sampler."""
        return normals(keys_B, length, self.noise_width)

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
        return self.mixed(state, a, b, self.mean(combination))

    def mixed(
        self, state: jax.Array, a: jax.Array | float, b: jax.Array | float, mean: jax.Array
    ) -> jax.Array:
        """The same with a `mean` that is there already."""
        return per_token(a) * state + per_token(b) * mean

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

    def steepest(self, gradient: jax.Array) -> jax.Array:
        return gradient


@dataclasses.dataclass(frozen=True)
class Projected(Space):
    """States h = x @ T, (B, L, W).

    ``factor_WW`` is that of the noise (`noise.cholesky_factor`), or None: made when it is needed.
    """

    factor_WW: jax.Array | None = None

    def constant(self) -> jax.Array:
        return noise_lib.factor(self.distinct_tables)

    def with_constant(self, constant: jax.Array | None) -> Self:
        return dataclasses.replace(self, factor_WW=constant)

    @property
    def distinct_tables(self) -> tuple[jax.Array, ...]:
        """The distinct tables, whose columns side by side are T. No copy of them is made."""
        return tuple(self.tables[role] for role in self._columns())

    @property
    def noise_width(self) -> int:
        return sum(table.shape[1] for table in self.distinct_tables)

    def from_dense(self, noise_BLV: jax.Array) -> jax.Array:
        """The raw noise whose state is n @ T (exactly so as eta -> 0)."""
        return noise_lib.raw_of_dense(self.distinct_tables, noise_BLV)

    def scatter(self, noise: jax.Array, scale: jax.Array | float = 1.0) -> jax.Array:
        if self.factor_WW is None:
            seen = noise_lib.project_noise(self.distinct_tables, noise)
        else:
            seen = noise_lib.seen(self.factor_WW, noise)
        return per_token(scale) * seen

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

    def steepest(self, gradient: jax.Array) -> jax.Array:
        """g @ R @ R': dx = g @ T' is seen as dx @ T = g @ T'T; in h @ R^-T it is plain ascent."""
        factor_WW = self.constant() if self.factor_WW is None else self.factor_WW
        return noise_lib.seen(factor_WW, noise_lib.seen(factor_WW.T, gradient))

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
