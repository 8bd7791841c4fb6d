"""Programs for other devices than those of this process."""

import jax
import jax.numpy as jnp
import pytest

from flm_jax import target
from flm_jax.models import products
from flm_jax.target import Target

CHIP = Target("tpu", "TPU v5 lite", 8)


def test_without_a_word_it_is_the_devices_of_this_process():
    here = target.current()
    assert (here.platform, here.form, here.devices) == ("cpu", "cpu", jax.device_count())


def test_in_the_block_it_is_the_other_one_and_afterwards_it_is_not():
    before = target.current()
    with target.compiling_for(CHIP):
        assert target.current() is CHIP and target.current().form == "accelerator"
        with target.compiling_for(Target("gpu", "NVIDIA H200", 1, "9.0")):
            assert target.current().platform == "gpu"
        assert target.current() is CHIP
    assert target.current() == before
    with pytest.raises(ValueError, match="any"), target.compiling_for(CHIP):
        raise ValueError("any")
    assert target.current() == before


def test_nothing_that_was_traced_for_one_is_used_for_the_other():
    """A jitted function of ours that was traced here has the form of a CPU."""
    rows, kernel = jnp.ones((4, 8)), jnp.ones((8, 2))
    program = jax.jit(lambda x, y: products.product(x, y, jnp.bfloat16))
    results = []
    for chips in (None, CHIP, None):
        if chips is None:
            shape = jax.eval_shape(program, rows, kernel)
        else:
            with target.compiling_for(chips):
                shape = jax.eval_shape(program, rows, kernel)
        results.append(shape.dtype)
    assert results == [jnp.float32, jnp.bfloat16, jnp.float32]
