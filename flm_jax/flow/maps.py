"""How a denoiser's answer moves the state: every update is x <- keep * x + add * p."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

EPS = 1e-5  # in the denominator of the official Euler step
EPS_MAP = 1e-8  # in the denominators of the official flow-map losses


def euler(t_now: jax.Array, t_next: jax.Array, eps: float = EPS) -> tuple[jax.Array, jax.Array]:
    """(keep, add) of x + (t' - t) * (p - x) / (1 - t + eps), the probability-flow Euler step.

    Times of any shape. A state that is already clean (t = 1) is kept, also with eps 0.
    """
    clean = t_now >= 1.0
    add = jnp.where(clean, 0.0, (t_next - t_now) / jnp.where(clean, 1.0, 1.0 - t_now + eps))
    return 1.0 - add, add


def velocity(p: jax.Array, x: jax.Array, t: jax.Array, eps: float = EPS) -> jax.Array:
    """The velocity (p - x) / (1 - t + eps) of the flow at x, all arguments of one shape."""
    return (p - x) / (1.0 - t + eps)


def jump(
    s: jax.Array, t: jax.Array, eps: float = 0.0, lift: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """(keep, add) of the flow map X_{s,t}(x) = (1-t)/(1-s) * x + (t-s)/(1-s) * delta.

    A state that is already clean (s = 1) is kept, where the formula is 0/0. ``eps`` is added to
    the denominators, ``lift`` to the numerator of keep (the official FMLM+ has 1e-8 in both).
    """
    clean = s >= 1.0
    left = jnp.where(clean, 1.0, 1.0 - s + eps)
    keep, add = (1.0 - t + lift) / left, (t - s) / left
    return jnp.where(clean, 1.0, keep), jnp.where(clean, 0.0, add)


def semigroup_weight(s: jax.Array, u: jax.Array, t: jax.Array, eps: float = EPS_MAP) -> jax.Array:
    """lambda of delta_{s,t}(x) = lambda * delta_{s,u}(x) + (1 - lambda) * delta_{u,t}(X_{s,u}(x)).

    lambda = (1-t)(u-s) / ((1-u)(t-s)) for s <= u <= t; 0 at t = 1, and 0 where s = t (0/0).
    """
    return (1.0 - t) * (u - s) / ((1.0 - u) * (t - s) + eps)


def gamma_noise(
    t_now: jax.Array,
    t_next: jax.Array,
    gamma: float,
    step: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]] = jump,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(t_aim, keep, add, noise) of one step that jumps beyond t' and returns with fresh noise.

    With sigma = 1 - t' the jump aims at noise level sigma~ = sigma * sqrt(1 - gamma^2), and
    gamma * sigma of new noise restores the level: mean and variance are those of t'. gamma 0 is
    the plain jump, gamma 1 jumps to the end and forgets the old noise (multistep consistency).
    ``step(t, t')`` -> (keep, add) is another rule in the place of the jump.
    """
    sigma = 1.0 - t_next
    sigma_aim = sigma * (1.0 - gamma * gamma) ** 0.5
    t_aim = 1.0 - sigma_aim
    keep, add = step(t_now, t_aim)
    return t_aim, keep, add + (sigma_aim - sigma), gamma * sigma


def grid(steps: int, power: float = 1.0) -> jax.Array:
    """tau_i = 1 - (1 - i / steps)^power for i = 0 .. steps, float32 (float64 in x64 mode).

    power 1 is the even grid of the official code; above 1 steps become shorter towards the end.
    Times are kept one rounding error apart, because no step may begin at 1, where nothing is left.
    """
    if power == 1.0:
        return jnp.linspace(0.0, 1.0, steps + 1)
    tau = 1.0 - jnp.linspace(1.0, 0.0, steps + 1) ** power
    return jnp.minimum(tau, 1.0 - jnp.arange(steps, -1, -1) * jnp.finfo(tau.dtype).epsneg)
