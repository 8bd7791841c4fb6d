"""What the distillations of a diffusion on tokens into itself share: rounds, and their teacher.

A round is a fixed number of updates. Its teacher is what the student was when the round began, and
answers a question that is easier than the student's by a step dt in time; the student learns the
answer. Then the student becomes the teacher and dt grows by a factor. The first teacher is the
model that the student starts as (``config.teacher``).

Teacher and number of updates are the state of the loss: saved, resumed, sharded like the student.
Teachers never have dropout. Differences from the official code are in docs/numerics.md.
"""

import abc
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.errors import UserError
from flm_jax.flow.at import EMA, STUDENT, TEACHER, At
from flm_jax.flow.net import Params
from flm_jax.flow.posterior import Posterior
from flm_jax.losses import options
from flm_jax.losses.base import Batch, PerToken, State, hint
from flm_jax.losses.divergence import FORWARD, REVERSE, Divergence
from flm_jax.losses.token_diffusion import TokenDiffusion

# Beside the teacher's own parameters, which is all that its network looks at.
UPDATES = "updates"


class Compared(NamedTuple):
    """Student and target at every position, and where they are compared, bool (B, L)."""

    student: Posterior
    target: Posterior
    where_BL: jax.Array


@dataclasses.dataclass(frozen=True)
class Rounds(TokenDiffusion, unfinished=True):
    """Base of the distillations in rounds.

    Attributes:
      every: updates of a round.
      rounds: how many there are; the last one goes on until training ends.
      first_steps: dt of the first round is 1 / first_steps, which then grows by `growth` a round.
      divergence: "reverse", KL(student || teacher), as official, or "forward".
      next_teacher: what the teacher of a new round is: the "student", as official, or its "ema".
    """

    every: int = 10_000
    rounds: int = 5
    first_steps: int = 512
    divergence: str = REVERSE
    next_teacher: str = STUDENT

    def __post_init__(self):
        super().__post_init__()
        options.one_of("divergence", self.divergence, REVERSE, FORWARD)
        options.one_of("next_teacher", self.next_teacher, STUDENT, EMA)
        options.at_least_one(every=self.every, rounds=self.rounds, first_steps=self.first_steps)
        if self.growth ** (self.rounds - 1) > self.first_steps:
            raise UserError(
                f"rounds={self.rounds} let the teacher's step grow from 1/{self.first_steps} to "
                f"{self.growth ** (self.rounds - 1)}/{self.first_steps}, which is longer than all "
                "of the time; give fewer rounds or more first_steps"
            )

    @property
    @abc.abstractmethod
    def growth(self) -> int:
        """By what dt grows from one round to the next."""

    @property
    def longest(self) -> float:
        """What dt would be in one step."""
        return 1.0

    @abc.abstractmethod
    def compare(
        self,
        at: At,
        batch: Batch,
        draws: dict[str, jax.Array],
        t_B: jax.Array,
        dt: jax.Array,
    ) -> Compared:
        """Asks student and teacher at times that are ``dt`` apart."""

    def evaluate(self, at: At, batch: Batch, draws: dict[str, jax.Array]) -> PerToken:
        dt = self.dt(at.nets[TEACHER].params[UPDATES])
        found = self.compare(at, batch, draws, self.times(draws)[batch.index_B], dt)
        count_BL = jnp.where(found.where_BL, batch.mask_BL, 0.0)
        loss_BL = self.diverge(found, hint(count_BL))
        return PerToken(loss_BL, count_BL, {"teacher_step": jnp.broadcast_to(dt, loss_BL.shape)})

    def diverge(self, found: Compared, hint_BL: jax.Array) -> jax.Array:
        """The loss of every position, (B, L)."""
        return found.student.loss(Divergence(found.target, self.divergence), hint_BL)

    def dt(self, updates: jax.Array) -> jax.Array:
        """The teacher's step after so many updates, ()."""
        lengths = [self.longest * self.growth**n / self.first_steps for n in range(self.rounds)]
        return jnp.asarray(lengths)[jnp.minimum(updates // self.every, self.rounds - 1)]

    def first_state(self, params: Params) -> State:
        return {TEACHER: {**params, UPDATES: jnp.zeros((), jnp.int32)}}

    def next_state(self, state: State, step: jax.Array, params: Params, ema: Params) -> State:
        begins = (step % self.every == 0) & (step // self.every < self.rounds)
        new = ema if self.next_teacher == EMA else params
        old = {name: tree for name, tree in state[TEACHER].items() if name != UPDATES}
        teacher = jax.tree.map(lambda a, b: jnp.where(begins, a, b), new, old)
        return {TEACHER: {**teacher, UPDATES: step}}
