"""One jump of a denoiser or a flow map: what an exported graph computes.

    p = network(x, tau_s[, tau_t]),     next = keep * x + add * p

A denoiser takes the Euler step of the flow from tau_s to tau_t (`samplers/euler.py`), a flow map
its jump (`samplers/flow_map.py`, gamma 0). The loop over steps, the noise and every choice between
them are the caller's. Inputs and outputs, in this order; letters as in `flm_jax`, W of the state:

    state          float32 (B, L, W)   h = x @ E (projected, W = D) or x itself (onehot, W = V)
    tau_s, tau_t   float32 (B,)        the network's times before and after it, 0 <= s <= t <= 1
    estimate       float32 (B, L, W)   self-conditioning only: the last ``mean``, zeros at first
    given_tokens   int32 (B, L)        given tokens only: count where the mask is true; the state
    given_mask     bool (B, L)         there is the clean one, whatever came in, and stays

    next_state     float32 (B, L, W)
    tokens         int32 (B, L)        arg max of p; given ones as they were given
    confidence     float32 (B, L)      its probability; 1 at given tokens
    mean           float32 (B, L, W)   p as a state: any other update is a * state + b * mean
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.contracts import Needs
from flm_jax.errors import UserError
from flm_jax.experiment import Experiment
from flm_jax.flow import maps
from flm_jax.flow.at import STUDENT, At
from flm_jax.flow.net import Params
from flm_jax.flow.space import OneHot, Space
from flm_jax.inference import FlowModel
from flm_jax.samplers.base import Carry, Given
from flm_jax.samplers.euler import Euler
from flm_jax.samplers.flow_map import FlowMap

Shape = tuple[Any, ...]  # of numbers, or of letters for what is left open
OUTPUTS = "next_state", "tokens", "confidence", "mean"


@dataclasses.dataclass(frozen=True)
class Jump:
    """A model's jump, and for which sizes it is exported; build it with `of_model`.

    Attributes:
      model: the trained model.
      rule: the sampler whose step it is.
      batch, length: the sizes of the graph; None leaves one open.
    """

    model: FlowModel
    rule: Euler | FlowMap
    batch: int | None = None
    length: int | None = None

    @property
    def vocab_size(self) -> int:
        return self.model.experiment.model.vocab_size

    @property
    def space(self) -> Space:
        return self.model.space()

    @property
    def is_onehot(self) -> bool:
        return isinstance(self.space, OneHot)

    @property
    def needs(self) -> Needs:
        """Which of the inputs there are: ``two_times``, ``given``, ``self_conditioning``."""
        config, needs = self.model.config.model, self.model.experiment.loss.needs
        return Needs(
            two_times=config.two_times,
            given=needs.given,
            self_conditioning=config.self_conditioning,
        )

    @property
    def longest(self) -> int:
        """The longest text that it can take; 0: any."""
        return self.model.config.model.learned_positions

    @property
    def temperature(self) -> float:
        """That of the denoiser in every step; the config's."""
        return self.model.config.sampler.denoiser_temperature

    @property
    def inputs(self) -> dict[str, tuple[Any, Shape]]:
        """The type and the shape of each input, with "B" and "L" for what is open."""
        batch, length = self.batch or "B", self.length or "L"
        state = np.float32, (batch, length, self.space.noise_width)
        found: dict[str, tuple[Any, Shape]] = {"state": state}
        found |= {name: (np.float32, (batch,)) for name in ("tau_s", "tau_t")}
        if self.needs.self_conditioning:
            found["estimate"] = state
        if self.needs.given:
            found["given_tokens"] = np.int32, (batch, length)
            found["given_mask"] = np.bool_, (batch, length)
        return found

    @property
    def outputs(self) -> dict[str, tuple[Any, Shape]]:
        """The type and the shape of each output."""
        dtype, state = self.inputs["state"]
        kinds = (dtype, state), (np.int32, state[:2]), (np.float32, state[:2]), (dtype, state)
        return dict(zip(OUTPUTS, kinds, strict=True))

    @functools.cached_property
    def portable(self) -> Experiment:
        """The experiment in a form that needs no sizes while it is traced, all in float32."""
        config = self.model.config
        changed = dataclasses.replace(config.model, attention="einsum", dtype="float32")
        changed = dataclasses.replace(changed, stream_dtype="float32")
        config = dataclasses.replace(config, model=changed)
        return dataclasses.replace(self.model.experiment, config=config, mesh=None)

    def __call__(self, params: Params, inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The outputs for `inputs`; a function that JAX can trace."""
        net = self.portable.net(params, self.temperature)
        net = dataclasses.replace(net, head_chunk=0)  # all logits at once: sizes may be open
        space = self.portable.space({STUDENT: net.table})
        at = At({STUDENT: net}, space, self.portable.clock)
        state, given = inputs["state"], None
        if self.needs.given:
            given = Given(inputs["given_tokens"], inputs["given_mask"])
            state, at = given.clean(space, state), at.given(given.mask_BL)
        carry = Carry(state, inputs.get("estimate"), given)
        move = self.rule.propose(at, carry, inputs["tau_s"], inputs["tau_t"])
        mean = at.estimate(move.posterior, state)
        after = space.mixed(state, move.keep, move.add, mean)
        tokens_BL, confidence_BL = move.most_likely()
        if given is not None:
            after, tokens_BL = given.keep(state, after), given.read(tokens_BL)
            confidence_BL = jnp.where(given.mask_BL, 1.0, confidence_BL)
        return dict(zip(OUTPUTS, (after, tokens_BL, confidence_BL, mean), strict=True))


def of_model(model: FlowModel, batch: int | None = None, length: int | None = None) -> Jump:
    """The jump of a denoiser or a flow map.

    Raises UserError for another kind of model, and for a length that it cannot have.
    """
    experiment, section = model.experiment, model.config.model
    if experiment.loss.is_correction:
        raise UserError(
            "the correction of a denoiser jumps with two networks, which export does not write; "
            "distil the flow map into one network (loss psd, lsd or esd) and export that"
        )
    if not experiment.has_denoiser:
        raise UserError(
            f"{_named(model.kind)} writes tokens by drawing them, so it has no jump to export; "
            "give a denoiser (FLM) or a flow map (FMLM)"
        )
    longest = section.learned_positions
    if longest and length is not None and length > longest:
        raise UserError(
            f"--length={length} is more than the model has positions (model.learned_positions="
            f"{longest}); give at most {longest}"
        )
    return Jump(model, FlowMap() if section.two_times else _euler(model), batch, length)


def _euler(model: FlowModel) -> Euler:
    section = model.config.sampler
    return Euler(**{"eps": maps.EPS, **(section.options if section.name == "euler" else {})})


def _named(kind: str) -> str:
    return f"this {kind} model" if kind.endswith("diffusion") else f"this model ({kind})"
