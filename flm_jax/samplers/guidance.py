"""Guidance: a step by q + w (p - q) in the place of p, with what a weaker guide says, q.

The guide is asked at the same state and times, and moves it by the same rule, so that only an
affine combination of two posteriors is new. w = 1 is p alone, w > 1 goes on where the guide is
left behind. The guides, and what is published of them:

* ``dropout``, the same network with dropout, a new mask for every text and step (autoguidance, in
  the paper at w = 50), or another checkpoint, smaller or trained less;
* ``nothing_given``, the same network that is told of no given token (classifier-free guidance): it
  sees given tokens as open ones, at the time of all others and under the noise that they would
  have had, x_t = (1 - t) eps + t e_y;
* ``no_estimate``, the same network with self-conditioning, told nothing (ELF).

A guided step takes two evaluations. The last step reads the arg max of the combination, which is
what the guided velocity leads to; drawn tokens (temperature > 0) are drawn from p, because the
combination is no distribution.
"""

import dataclasses
from collections.abc import Callable

import jax

from flm_jax.flow.at import GUIDE, At
from flm_jax.flow.net import Net
from flm_jax.flow.space import per_token
from flm_jax.samplers.base import Carry, Move
from flm_jax.sampling import DROPOUT, NO_ESTIMATE, NOTHING_GIVEN, Sampling

KNOBS = frozenset({"guidance", "guide", "guide_dropout"})
PURPOSE = 6  # of the keys of dropout masks, among the purposes that samplers fold in

Propose = Callable[[At, Carry, jax.Array, jax.Array], Move]


@dataclasses.dataclass(frozen=True)
class Ask:
    """One step of a rule, ``propose``, which can be asked once more.

    ``keys_B`` are of this step, for what the guide draws.
    """

    propose: Propose
    at: At
    tau_s: jax.Array
    tau_t: jax.Array
    keys_B: jax.Array

    def guided(self, move: Move, carry: Carry, sampling: Sampling) -> Move:
        """The same move with a guide."""
        if sampling.guide == NOTHING_GIVEN:
            at, carry = self.nothing_given(carry)
        elif sampling.guide == NO_ESTIMATE:
            at, carry = self.at, carry._replace(estimate=None)
        else:
            at, carry = self.other_network(carry, sampling.guide == DROPOUT)
        guide = self.propose(at, carry, self.tau_s, self.tau_t).posterior
        return move._replace(guide=guide, scale=sampling.guidance)

    def nothing_given(self, carry: Carry) -> tuple[At, Carry]:
        """Where and what the network is asked that is told of no given token.

        No estimate either: that of a given token is the token.
        """
        assert carry.given is not None and carry.first is not None
        t_B = self.at.clock.to_t(self.tau_s)
        clean = self.at.space.clean(carry.given.tokens_BL, carry.state.dtype)
        noised = per_token(1.0 - t_B) * carry.first + per_token(t_B) * clean
        state = carry.given.keep(noised, carry.state)
        return dataclasses.replace(self.at, given_BL=None), Carry(state)

    def other_network(self, carry: Carry, dropout: bool) -> tuple[At, Carry]:
        """Where and what the network in the role of the guide is asked."""
        at = dataclasses.replace(self.at, writer=GUIDE)
        if dropout:
            net = with_dropout(at.student, self.keys_B)
            at = dataclasses.replace(at, nets={**at.nets, GUIDE: net})
        estimate = carry.estimate if at.student.self_conditioning else None
        return at, carry._replace(estimate=estimate)


def with_dropout(net: Net, keys_B: jax.Array) -> Net:
    """The network whose dropout is always on, with masks by one key for every text."""

    def backbone(params, h_BLD, tau_s, tau_t=None, key=None, *told):
        return net.backbone(params, h_BLD, tau_s, tau_t, keys_B, *told)

    return dataclasses.replace(net, backbone=backbone)
