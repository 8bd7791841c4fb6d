"""From a config to the objects that compute: model, clock, space, loss, sampler, networks.

What training, generation, evaluation and benchmarks have in common.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from flm_jax import config as config_lib
from flm_jax.evals import EVALS
from flm_jax.flow import clock as clock_lib
from flm_jax.flow import input_scale
from flm_jax.flow import space as space_lib
from flm_jax.flow.net import Net
from flm_jax.flow.space import Space
from flm_jax.host import bfloat16, sharding
from flm_jax.losses import LOSSES
from flm_jax.losses.base import Loss
from flm_jax.models import attention, dit, kernels
from flm_jax.samplers import SAMPLERS
from flm_jax.samplers.base import Sampler
from flm_jax.sampling import SamplingKnobs


def tables() -> dict[str, dict]:
    """All registries that names in a config are looked up in, for `config.validate`."""
    from flm_jax.data import DATASETS
    from flm_jax.tokenizers import TOKENIZERS

    return {
        "loss": LOSSES,
        "sampler": SAMPLERS,
        "data": DATASETS,
        "tokenizer": TOKENIZERS,
        "eval": EVALS,
    }


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config with a vocabulary size; everything else follows and is built on first use.

    ``mesh`` are the devices that share batch and parameters; None: one device. A chunk of the
    vocabulary head holds ``model.head_chunk`` tokens of each of those that share a batch.
    """

    config: config_lib.Config
    vocab_size: int
    mesh: Mesh | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickled without its devices, which cannot travel, and without what was built for them."""
        return {"config": self.config, "vocab_size": self.vocab_size, "mesh": None}

    @functools.cached_property
    def model(self) -> dit.Model:
        forward = self.loss.needs.forward_derivatives
        # Decided before where it must last: by training, which writes it down.
        dtype = bfloat16.settled(self.config.model.dtype)
        model = dataclasses.replace(self.config.model, dtype=dtype)
        long = attention.is_long(self.config.data.length, model.width // model.heads)
        form = kernels.settle(model, forward_derivatives=forward, long=long)
        settings = dataclasses.replace(model, attention=form)
        mesh = self.mesh
        return dit.build(settings, self.vocab_size, sharding.gather(mesh), sharding.share(mesh))

    @functools.cached_property
    def clock(self) -> clock_lib.Clock:
        if self.config.clock.name == "identity":
            return clock_lib.identity()
        return clock_lib.build(self.vocab_size, self.config.clock.quadrature, jnp.float32)

    @functools.cached_property
    def loss(self) -> Loss:
        section = self.config.loss
        return config_lib.build(LOSSES, section.name, section.options, "loss")

    def sampler(
        self,
        name: str = "",
        options: dict[str, Any] | None = None,
        knobs: SamplingKnobs | None = None,
    ) -> Sampler:
        """The sampler of the config, or another one by name, with knobs other than the config's.

        Raises UserError for options that it does not have, or that do not fit the vocabulary.
        """
        section = self.config.sampler
        if not name or name == section.name:
            name, options = section.name, {**section.options, **(options or {})}
        sampler = config_lib.build_sampler(SAMPLERS, name, options or {}, knobs or section)
        sampler.check_vocabulary(self.model.vocab_size)
        return sampler.suited(self.config.model.two_times)

    def space(self, tables: dict[str, jax.Array]) -> Space:
        """The state space over the embedding tables (V, D) of all networks that see one state."""
        width = sum(table.shape[1] for table in tables.values())
        return space_lib.choose(self.config.space, self.vocab_size, width)(tables)

    def net(self, params: Any, temperature: float = 1.0) -> Net:
        return self._seeing(self.model.net(params, temperature, self._groups))

    def trained_net(self, params: Any) -> Net:
        """`net` in the form whose gradient is cheapest."""
        return self._seeing(self.model.trained.net(params, devices=self._groups))

    @property
    def _groups(self) -> int:
        """Devices that share a batch."""
        return 1 if self.mesh is None else sharding.batch_devices(self.mesh)

    def _seeing(self, net: Net) -> Net:
        """The network with what scales its input, if anything does."""
        deviation = self.config.model.input_scale
        return input_scale.scaled(net, self.clock.to_t, deviation) if deviation else net

    @property
    def has_denoiser(self) -> bool:
        """Whether the network denoises noised text (corrections and token baselines do not)."""
        return self.loss.denoises

    def denoiser(self, params: Any, temperature: float = 1.0) -> Net:
        """The network as a denoiser: a flow map asked at one time gets it twice (s = t)."""
        net = self.net(params, temperature)
        return net.on_diagonal() if self.config.model.two_times else net
