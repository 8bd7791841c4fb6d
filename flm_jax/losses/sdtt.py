"""Self-distillation through time of masked diffusion, the baseline SDTT.

Text is masked at time t as in masked diffusion. From there the teacher of the round takes K short
sampling steps of length dt. The target of a masked token is what the teacher predicted in the step
that showed it, or in its last step if none did. The student must say the same in one look:

    loss = mean over masked tokens of KL(student(x_t) || target)

(Deschenaux and Gulcehre 2025, "Beyond autoregression: fast LLMs via self-distillation through
time", arXiv 2410.21035.) After a round the student writes in K times fewer steps what it took
before. All K targets have the same vocabulary head, so that the target is one posterior whose
features were chosen position by position: no array over the vocabulary, one pass of the head.

The model must be one of masked diffusion (`config.teacher`), the sampler is `ancestral_masked`.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from flm_jax.contracts import Needs
from flm_jax.flow import discrete
from flm_jax.flow.at import TEACHER, At
from flm_jax.flow.net import Net, Output
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.randomness import folded, two_each, uniforms
from flm_jax.flow.space import Space
from flm_jax.losses import options
from flm_jax.losses.base import Batch
from flm_jax.losses.rounds import Compared, Rounds
from flm_jax.losses.token_diffusion import refuse_weight

EVEN, OFFICIAL = "even", "official"


@dataclasses.dataclass(frozen=True)
class SDTT(Rounds):
    """The divergence from what the teacher says when it shows a token.

    The attributes of `Rounds` (8 rounds, from 1/1024 to 1/8), and these.

    Attributes:
      teacher_steps: K, by which dt grows, too.
      spacing: when the teacher's steps begin: "even", t - k * dt; or "official", as the public code
        has it, which is another thing than its comment says (docs/numerics.md).
    """

    t_min: float = 1e-5
    rounds: int = 8
    first_steps: int = 1024
    teacher_steps: int = 2
    spacing: str = EVEN

    keeps_prompts: ClassVar[bool] = True

    def __post_init__(self):
        options.at_least_one(teacher_steps=self.teacher_steps)  # before `growth` is looked at
        super().__post_init__()
        options.one_of("spacing", self.spacing, EVEN, OFFICIAL)

    @property
    def needs(self) -> Needs:
        return Needs(mask_token=True, starts_as=("masked_diffusion", "sdtt"))

    @property
    def growth(self) -> int:
        return self.teacher_steps

    @property
    def longest(self) -> float:
        return 1.0 - self.t_min

    def draw_tokens(self, keys_B: jax.Array, length: int, space: Space) -> dict[str, jax.Array]:
        keys_mask, keys_teacher = two_each(keys_B)
        every_KB = [two_each(folded(keys_teacher, k)) for k in range(self.teacher_steps)]
        return {
            "mask": uniforms(keys_mask, length),
            "show": jnp.stack([uniforms(where_B, length) for where_B, _ in every_KB]),
            "which": jnp.stack([which_B for _, which_B in every_KB]),
        }

    def compare(
        self,
        at: At,
        batch: Batch,
        draws: dict[str, jax.Array],
        t_B: jax.Array,
        dt: jax.Array,
    ) -> Compared:
        masked_BL = draws["mask"] < 1.0 - discrete.alpha(t_B)[:, None]
        if batch.prompt_BL is not None:
            masked_BL = masked_BL & ~batch.prompt_BL
        target = self.target(at.nets[TEACHER], batch.tokens_BL, masked_BL, t_B, dt, draws)
        output = self.ask(at.student, batch.tokens_BL, masked_BL, draws.get("dropout"))
        refuse_weight(output.log_weight, "sdtt")
        return Compared(output.posterior, target, masked_BL)

    def ask(
        self, net: Net, tokens_BL: jax.Array, masked_BL: jax.Array, key: jax.Array | None = None
    ) -> Output:
        return discrete.predict_masked(net, tokens_BL, masked_BL, key)

    def target(
        self,
        teacher: Net,
        tokens_BL: jax.Array,
        masked_BL: jax.Array,
        t_B: jax.Array,
        dt: jax.Array,
        draws: dict[str, jax.Array],
    ) -> Posterior:
        """What the teacher predicted of every masked token when it showed it."""
        features_BLD, answer = None, None
        for k in range(self.teacher_steps):
            answer = self.ask(teacher, tokens_BL, masked_BL).posterior
            if features_BLD is None:
                features_BLD = answer.features_BLD
            else:  # those that are masked still
                features_BLD = jnp.where(masked_BL[..., None], answer.features_BLD, features_BLD)
            start_B = self.start(k, t_B, dt)
            alphas = discrete.alpha(start_B), discrete.alpha(start_B - dt)
            # Above 1, where dt reaches beyond the data: all is shown.
            share_B = discrete.unmask_probability(*alphas)
            tokens_BL, masked_BL = self.show(answer, tokens_BL, masked_BL, share_B, k, draws)
        assert answer is not None and features_BLD is not None  # teacher_steps is at least 1
        return dataclasses.replace(answer, features_BLD=features_BLD)

    def start(self, k: int, t_B: jax.Array, dt: jax.Array) -> jax.Array:
        """When the teacher's step k begins, (B,)."""
        if self.spacing == EVEN:
            return jnp.maximum(t_B - k * dt, self.t_min)
        weight = 1.0 - k / max(self.teacher_steps - 1, 1)
        end_B = t_B - self.teacher_steps * dt
        return jnp.maximum(t_B * weight + (1.0 - t_B) * end_B, self.t_min)

    def show(
        self,
        posterior: Posterior,
        tokens_BL: jax.Array,
        masked_BL: jax.Array,
        share_B: jax.Array,
        k: int,
        draws: dict[str, jax.Array],
    ) -> tuple[jax.Array, jax.Array]:
        """The teacher's step k: tokens, and which of them are masked still; (B, L) each."""
        shown_BL = masked_BL & (draws["show"][k] < share_B[:, None])
        drawn_BL = posterior.sample(draws["which"][k])
        return jnp.where(shown_BL, drawn_BL, tokens_BL), masked_BL & ~shown_BL
