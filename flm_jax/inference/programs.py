"""Compiled samplers of a model: built on first use, kept by what they were compiled for."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.experiment import Experiment
from flm_jax.flow.at import STUDENT, At
from flm_jax.flow.randomness import sequence_keys
from flm_jax.host import numerics, progress, sharding
from flm_jax.samplers.base import Sampler, Written
from flm_jax.sampling import Sampling
from flm_jax.tokenizers import Tokenizer

# (parameters by role, key, index of the first sample) -> Written
Compiled = Callable[[dict[str, Any], jax.Array, jax.Array], Written]


class Program(NamedTuple):
    """What one compiled sampler is for: the key under which it is kept."""

    rule: Sampler
    sampling: Sampling
    batch: int
    length: int
    trajectory: bool


class Programs:
    """The compiled samplers of one model.

    Args:
      experiments: those of its networks by role; "student" is the one that samples.
      tokenizer: its tokenizer; some samplers begin with BOS.
      mesh: the devices that share a batch; None: one device.

    Attributes:
      kept: the compiled ones.
    """

    def __init__(
        self,
        experiments: Mapping[str, Experiment],
        tokenizer: Tokenizer,
        mesh: jax.sharding.Mesh | None = None,
    ):
        self._experiments = experiments
        self._tokenizer = tokenizer
        self._mesh = mesh
        self.kept: dict[Program, Compiled] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Pickled without what is compiled and without the mesh: neither can travel."""
        return {**vars(self), "kept": {}, "_mesh": None}

    def compiled(self, program: Program, params: dict[str, Any]) -> Compiled:
        """The compiled sampler for parameters of these shapes and places."""
        if program not in self.kept:
            out = None if self._mesh is None else sharding.replicated(self._mesh)
            jitted = jax.jit(functools.partial(self._sample, program), out_shardings=out)
            example = (params, numerics.key(0), jnp.int32(0))
            with progress.Waiting(f"compiling the sampler for {counted(program.sampling.steps)}"):
                self.kept[program] = jitted.lower(*example).compile()
        return self.kept[program]

    def whole_batch(self, batch: int) -> int:
        """The next batch size that the devices can share."""
        devices = 1 if self._mesh is None else sharding.batch_devices(self._mesh)
        return -(-batch // devices) * devices

    def _sample(
        self, program: Program, params: dict[str, Any], key: jax.Array, first: jax.Array
    ) -> Written:
        rule, sampling, batch, length, trajectory = program
        index_B = first + jnp.arange(batch)
        if self._mesh is not None:
            rows = sharding.batch_sharding(self._mesh)
            index_B = jax.lax.with_sharding_constraint(index_B, rows)
        student = self._experiments[STUDENT]
        nets = {
            # A flow map that is asked at one time only is a denoiser.
            role: (made.net if role == STUDENT and rule.needs.two_times else made.denoiser)(
                params[role], sampling.denoiser_temperature
            )
            for role, made in self._experiments.items()
        }
        space = student.space({role: net.table for role, net in nets.items()})
        at = At(nets, space, student.clock)
        keys_B = sequence_keys(key, index_B)
        bos_id = self._tokenizer.bos_id
        return rule.run(at, keys_B, sampling, length, trajectory=trajectory, bos_id=bos_id)


def counted(steps: int) -> str:
    """ "1 step", "8 steps"."""
    return f"{steps} step{'s' * (steps > 1)}"
