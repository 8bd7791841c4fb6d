"""Models, inputs and runs of jumps that the tests of exports share."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from flm_jax.experiment import Experiment
from flm_jax.export import jump as jump_lib
from flm_jax.export.jump import Jump
from flm_jax.inference import FlowModel

# Together every option of the network, with and without given tokens, in both spaces.
VARIANTS = {
    "denoiser": dict(),
    "flow_map": dict(two_times=True),
    "denoiser_onehot": dict(space="onehot", given=True, clock={"name": "identity"}),
    "flow_map_onehot": dict(space="onehot", two_times=True, given=True, model__input_scale=0.5),
    "modern": dict(
        two_times=True, given=True, model__norm="rms", model__mlp="swiglu", model__qk_norm=True,
        model__self_conditioning=True, model__input_scale=1.0, model__loss_weighting=True,
    ),
    "plain": dict(
        model__learned_positions=12, model__tied_head=True, model__logit_cap=0.0,
        model__attention_cap=0.0, sampler__denoiser_temperature=0.7, model__dtype="bfloat16",
    ),
}  # fmt: skip


class Letters:
    """What an export asks of a tokenizer."""

    name = "letters"
    bos_id, eos_id, pad_id, vocab_size = 0, 1, None, tiny.V

    def piece(self, token: int) -> str:
        return "abcdefghijklmnop"[token]

    def save(self, folder: pathlib.Path) -> None:
        folder.mkdir()


def model(
    folder: pathlib.Path,
    two_times: bool = False,
    space: str = "projected",
    given: bool = False,
    **changes: Any,
) -> FlowModel:
    """A denoiser or a flow map with nothing at zero; ``changes`` as in `tiny.run_config`."""
    options = {"given": "uniform"} if given else {}
    loss = {"name": "psd" if two_times else "flow_matching", "options": options}
    fixed = {"model__two_times": two_times, "model__depth": 2, "space": space}
    made = Experiment(tiny.run_config(folder, loss=loss, **fixed, **changes), tiny.V)
    return FlowModel(made, Letters(), tiny.params(made.model))  # pyright: ignore


def inputs(jump: Jump, batch: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random ones, with the first time at noise and the last one at text."""
    draw, width = np.random.default_rng(seed), jump.space.noise_width
    tau_s, tau_t = np.sort(draw.uniform(0, 1, (2, batch)), axis=0).astype(np.float32)
    tau_s[0], tau_t[-1] = 0.0, 1.0
    state, estimate = draw.standard_normal((2, batch, length, width)).astype(np.float32)
    tokens = draw.integers(0, jump.vocab_size, (batch, length)).astype(np.int32)
    every = dict(state=state, tau_s=tau_s, tau_t=tau_t, estimate=estimate, given_tokens=tokens)
    every |= {"given_mask": draw.random((batch, length)) < 0.4}
    return {name: every[name] for name in jump.inputs}


@functools.lru_cache
def compiled(jump: Jump):
    return jax.jit(lambda params, x: jump(params, x))


def computed(jump: Jump, x: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs by JAX, in their order."""
    found = compiled(jump)(jump.model.params, x)
    return [np.asarray(found[name]) for name in jump_lib.OUTPUTS]


def noise(jump: Jump, batch: int, length: int, seed: int = 0) -> jax.Array:
    """Raw noise of the space."""
    size = batch, length, jump.space.noise_width
    return jnp.asarray(np.random.default_rng(seed).standard_normal(size, "float32"))
