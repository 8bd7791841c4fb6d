"""Short texts, some of them given, and how samplers write them with networks of `given_nets`."""

import given_nets
import jax
import jax.numpy as jnp
import numpy as np
import tiny

from flm_jax.flow import clock as clock_lib
from flm_jax.flow.randomness import sequence_keys
from flm_jax.flow.space import Projected
from flm_jax.samplers.base import Given
from flm_jax.sampling import Sampling

V, B, L, STEPS = given_nets.V, 3, 5, 4
CLOCK = clock_lib.build(V)
KEYS = sequence_keys(jax.random.key(3), jnp.arange(B))
TOKENS = np.random.default_rng(1).integers(0, V, (B, L)).astype(np.int32)
SOME = np.asarray([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 0]], bool)
GIVEN = Given(TOKENS, SOME)


def write(
    sampler, nets, make_space=Projected, *, keys=KEYS, dense=None, given=None, trajectory=True,
    **knobs,
):  # fmt: skip
    """`Sampler.run` as one program, with the knobs; ``dense``: the noise to begin with."""
    sampling = Sampling(**({"steps": STEPS} | knobs))

    @jax.jit
    def call(given):
        at = tiny.at(nets, make_space, CLOCK)
        start = None if dense is None else at.space.from_dense(dense)
        options = dict(start=start, trajectory=trajectory, given=given)
        return sampler.run(at, keys, sampling, L, **options)

    return call(given)
