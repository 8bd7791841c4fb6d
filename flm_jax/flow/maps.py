"""How a denoiser's answer moves the state: every update is x <- keep * x + add * p."""

import jax
import jax.numpy as jnp

EPS = 1e-5  # in the denominator of the official Euler step


def euler(t_now: jax.Array, t_next: jax.Array, eps: float = EPS) -> tuple[jax.Array, jax.Array]:
    """(keep, add) of x + (t' - t) * (p - x) / (1 - t + eps), the probability-flow Euler step.

    Times of any shape. A state that is already clean (t = 1) is kept: t' = t there, so add is 0.
    """
    add = (t_next - t_now) / (1.0 - t_now + eps)
    return 1.0 - add, add


def velocity(p: jax.Array, x: jax.Array, t: jax.Array, eps: float = EPS) -> jax.Array:
    """The velocity (p - x) / (1 - t + eps) of the flow at x, all arguments of one shape."""
    return (p - x) / (1.0 - t + eps)


def linear_grid(steps: int) -> jax.Array:
    """tau_i = i / steps for i = 0 .. steps, float32 (float64 in x64 mode)."""
    return jnp.linspace(0.0, 1.0, steps + 1)
