"""What a sampler is: it writes sequences of tokens in so many network evaluations.

Samplers of vectors are one rule, a `Move` for every step, in the loops of `samplers/loops.py`;
samplers of tokens bring a loop of their own, `Sampler.write`.
"""

import abc
import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.contracts import Contract, Needs
from flm_jax.flow.at import At
from flm_jax.flow.combination import Combination
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.space import Space
from flm_jax.sampling import Sampling, SamplingKnobs, knob_fields, shown

# Knobs that say more about another one, whose sentence is enough.
_PART_OF = {"guide": "guidance", "guide_dropout": "guidance"}


class Move(NamedTuple):
    """One step of a sampler of vectors: x <- keep * x + add * p + noise * xi.

    Coefficients are scalars, (B,) or (B, L). With a ``guide`` p is q + scale * (p - q), where q is
    what the guide says (`samplers.guidance`).
    """

    posterior: Posterior
    keep: jax.Array
    add: jax.Array
    noise: jax.Array | float = 0.0
    correction: Combination | None = None
    guide: Posterior | None = None
    scale: float = 1.0

    def predicted(self, coefficient: jax.Array | float = 1.0) -> Combination:
        """coefficient * p, the guided one if there is a guide."""
        if self.guide is None:
            return self.posterior.probability(coefficient)
        predicted = self.posterior.probability(coefficient * self.scale)
        return predicted + self.guide.probability(coefficient * (1.0 - self.scale))

    @property
    def prediction(self) -> Combination:
        """What is added to the state: add * p, and the correction if there is one."""
        prediction = self.predicted(self.add)
        return prediction if self.correction is None else prediction + self.correction

    def most_likely(self) -> tuple[jax.Array, jax.Array]:
        """The arg max of p, the guided one if there is a guide, and its probability by the network.

        (B, L) each. A guided p is no distribution, so it has no probabilities of its own.
        """
        if self.guide is None:
            return self.posterior.most_likely()
        tokens_BL = self.predicted().argmax()
        return tokens_BL, jnp.exp(self.posterior.log_prob(tokens_BL))

    def moved(
        self, at: At, state: jax.Array, given_BL: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """The state after it, without noise and correction, and the estimate; as `At.moved`.

        The estimate is the network's own, also with a guide: what it was told in training.
        """
        if self.guide is None:
            return at.moved(state, self.keep, self.add, self.posterior, given_BL)
        add = self.add * self.scale
        state, estimate = at.moved(state, self.keep, add, self.posterior, given_BL)
        add = self.add * (1.0 - self.scale)
        return at.space.advance(state, 1.0, add, self.guide.probability()), estimate


class Given(NamedTuple):
    """Tokens that are not written but given, with any shape of mask: a prompt, clues, a frame.

    ``tokens_BL`` int32 counts where ``mask_BL`` bool is true. A given token is a position at time
    1: the network is told both its times as 1, its state is the clean one and is kept, and it is
    read as it was given. The same two rules in every sampler; no array has a vocabulary axis.
    """

    tokens_BL: jax.Array
    mask_BL: jax.Array

    def read(self, tokens_BL: jax.Array) -> jax.Array:
        """Those tokens where nothing is given, the given ones elsewhere."""
        return jnp.where(self.mask_BL, self.tokens_BL, tokens_BL)

    def clean(self, space: Space, state: jax.Array) -> jax.Array:
        """The state with the given tokens at time 1."""
        return self.keep(space.clean(self.tokens_BL, state.dtype), state)

    def keep(self, before: jax.Array, after: jax.Array) -> jax.Array:
        """``after`` a step, but at given tokens the state ``before`` it; (B, L, ...) each."""
        return jnp.where(self.mask_BL[..., None], before, after)


class Carry(NamedTuple):
    """What a sampler of the common loop carries from step to step.

    ``estimate`` is what a network with self-conditioning is told: `At.estimate` of the last
    prediction, zeros before the first one. None for others. ``given`` is None if all is written.
    ``first`` is the state before any token was given, for a guide to which nothing is given.
    """

    state: jax.Array
    estimate: jax.Array | None = None
    given: Given | None = None
    first: jax.Array | None = None


class Trajectory(NamedTuple):
    """What happened on the way, one entry per network evaluation S.

    ``states`` has S + 1 entries: the start, then the state after every step (the last one is the
    mean of the last prediction). ``tokens_SBL`` is the arg max of every prediction and
    ``confidence_SBL`` its probability.
    """

    tau_S: jax.Array
    t_S: jax.Array
    states: jax.Array
    tokens_SBL: jax.Array
    confidence_SBL: jax.Array


class Written(NamedTuple):
    """Tokens int32 (B, L), the network evaluations int32 (B,) that each sequence took, the way."""

    tokens_BL: jax.Array
    evaluations_B: jax.Array
    trajectory: Trajectory | None

    @classmethod
    def in_all_steps(
        cls, tokens_BL: jax.Array, steps: int | jax.Array, trajectory: Trajectory | None = None
    ) -> "Written":
        """Sequences that took one evaluation per step each."""
        return cls(tokens_BL, jnp.full(tokens_BL.shape[:1], steps), trajectory)


class Request(NamedTuple):
    """What a sampler is to write.

    Attributes:
      keys_B: one for every sequence (`randomness.sequence_keys`).
      sampling: knobs that `Sampler.without_effect` has no objection to.
      length: tokens of a sequence.
      start: a given raw noise (B, L, space.noise_width) instead of a drawn one.
      noise: given raw noise of the steps, (steps - 1, B, L, space.noise_width).
      trajectory: whether to return what happened on the way; then no sequence stops early,
        whatever the patience.
      bos_id: the tokenizer's BOS, for samplers that start from it.
      given: tokens that are not written but given; `check_given` has no objection to them.
    """

    at: At
    keys_B: jax.Array
    sampling: Sampling
    length: int
    start: jax.Array | None = None
    noise: jax.Array | None = None
    trajectory: bool = False
    bos_id: int | None = None
    given: Given | None = None


class Sampler(Contract, unfinished=True):
    """How samples are written: a frozen dataclass, a row of `flm_jax.samplers.SAMPLERS`.

    Attributes:
      uses: the sampling knobs (fields of `SamplingKnobs`) that it looks at. One that is also a
        field of the dataclass is given to its constructor.
    """

    uses: ClassVar[frozenset[str]]

    @property
    @abc.abstractmethod
    def needs(self) -> Needs:
        """The networks and the kind of student it is made for."""

    @property
    def stochastic(self) -> bool:
        """Whether a step draws noise."""
        return False

    @property
    def kind(self) -> str:
        """What sentences call it."""
        return f"the sampler {type(self).__name__}"

    def run(self, at: At, keys_B: jax.Array, sampling: Sampling, length: int, **more) -> Written:
        """Writes one sequence of ``length`` tokens for every key, as a `Request` with these says.

        `check_vocabulary` has no objection to the vocabulary of the student.
        """
        return self.write(Request(at, keys_B, sampling, length, **more))

    @abc.abstractmethod
    def write(self, asked: Request) -> Written:
        """What `run` does."""

    def check_given(self, mask_BL: np.ndarray) -> None:
        """UserError for places, bool (B, L), at which it cannot take given tokens."""

    def suited(self, two_times: bool) -> "Sampler":
        """The same for a network of one time or of two, if that is left open."""
        return self

    def steps_for(self, length: int) -> int | None:
        """The one number of steps in which it writes ``length`` tokens; None: any number."""
        return None

    def check_vocabulary(self, size: int) -> None:
        """UserError for options that do not fit a vocabulary of ``size`` tokens."""

    def without_effect(self, knobs: SamplingKnobs) -> dict[str, str]:
        """A sentence, by name, for every knob that is set and would do nothing here."""
        known = {field.name: field for field in knob_fields()}
        defaults, changed = dataclasses.asdict(SamplingKnobs()), knobs.changed()
        return {
            name: f"{name}={shown(value)} has no effect on {self.kind}; leave it at "
            f"{shown(defaults[name])} ({name}: {known[name].metadata['meaning']})"
            for name, value in changed.items()
            if name not in self.uses and _PART_OF.get(name) not in changed
        }
