"""Any-order flow maps (FMLM+, arXiv 2606.24773): PSD with given tokens, the network of refinement.

Every token is given (clean, both its times 1) or open (times s, t of its sequence):

    f ~ U(0, 1) per sequence;  given: u < f, and the prompt;  the mean is over the open tokens
    on the diagonal:  the data, or a frozen any-order denoiser at (x_s, s)
    off it:           the semigroup target of `losses/psd.py`, from the data alone (no stages)
    at zero:          what a frozen masked diffusion model says of the open tokens, all masked

Such a network completes any subset of a text in one jump, and its probabilities say how well each
token fits the rest. The official code has no decoding-accuracy clock (`clock.name=identity`).
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from flm_jax.contracts import Needs
from flm_jax.flow import discrete, maps
from flm_jax.flow.at import MASKED_TEACHER, At
from flm_jax.flow.posterior import Posterior
from flm_jax.losses import given_tokens, options
from flm_jax.losses.base import Batch, PerToken
from flm_jax.losses.flow_map import DATA, UNIFORM_DIFF, Setting
from flm_jax.losses.kinds import AT_ZERO, Kinds
from flm_jax.losses.psd import PSD

UNIFORM_TIMES = "uniform"


@dataclasses.dataclass(frozen=True)
class AnyOrder(PSD):
    """The semigroup objective with given tokens.

    The attributes of `PSD` (with the defaults of the published training), and these.

    Attributes:
      off_diagonal_times: "uniform_diff" or "uniform", a sorted pair of one start and one length.
      at_zero_fraction: share of the global batch that learns from the masked diffusion model of
        ``config.masked_teacher`` (official: p_distill); the other shares are of the rest.
      official: the published form in two details, for parity: a token whose loss is exactly 0 does
        not count, and 1e-8 is added to the numerator of the jump in the target.
    """

    on_diagonal: str = DATA
    given: str = given_tokens.UNIFORM
    at_zero_fraction: float = 0.0
    official: bool = False

    ways_to_draw: ClassVar[tuple[str, ...]] = (UNIFORM_DIFF, UNIFORM_TIMES)

    def __post_init__(self):
        super().__post_init__()
        options.share("at_zero_fraction", self.at_zero_fraction)

    @property
    def needs(self) -> Needs:
        return dataclasses.replace(super().needs, masked_teacher=self.at_zero_fraction > 0.0)

    @property
    def off_diagonal_share(self) -> float:
        return (1.0 - self.at_zero_fraction) * super().off_diagonal_share

    @property
    def lift(self) -> float:
        return maps.EPS_MAP if self.official else 0.0

    @property
    def metric_names(self) -> tuple[str, ...]:
        at_zero = ("at_zero",) if self.at_zero_fraction else ()
        return *super().metric_names, *at_zero

    def evaluate(self, at: At, batch: Batch, draws: dict[str, jax.Array]) -> PerToken:
        found = super().evaluate(at, batch, draws)
        if not self.official:
            return found
        return found._replace(count_BL=found.count_BL * (found.loss_BL > 0.0))

    def of_group(
        self, group: int, here: Setting, posterior: Posterior, tokens_BL: jax.Array
    ) -> jax.Array:
        if group == AT_ZERO:
            return self.at_zero(here, posterior, tokens_BL)
        return super().of_group(group, here, posterior, tokens_BL)

    def at_zero(self, here: Setting, posterior: Posterior, tokens_BL: jax.Array) -> jax.Array:
        """Cross-entropy per token against the masked diffusion model that sees the given tokens."""
        target = self.masked_teacher(here, tokens_BL).probability()
        return target.cross_entropy_to(posterior, here.hint_BL)

    def masked_teacher(self, here: Setting, tokens_BL: jax.Array) -> Posterior:
        """What the masked diffusion model says where tokens are open."""
        masked_BL = jnp.ones(tokens_BL.shape, bool)
        if here.given_BL is not None:
            masked_BL = ~here.given_BL
        net = here.at.nets[MASKED_TEACHER]
        return discrete.predict_masked(net, tokens_BL, masked_BL).posterior

    def kinds(self, global_size: int) -> Kinds:
        fractions = self.diagonal_fraction, self.boundary_fraction, self.at_zero_fraction
        return Kinds.of(global_size, *fractions)

    def notices(self, batch_size: int) -> list[str]:
        return [] if self.at_zero_fraction else super().notices(batch_size)

    def drawn_names(self, size: int) -> dict[str, int]:
        return {"length": size, "start": size}

    def drawn_times(self, draws: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """As the official code draws them: the time on the diagonal is made of the same numbers."""
        length, start = self.drawn(draws, "length"), self.drawn(draws, "start")
        if self.off_diagonal_times == UNIFORM_TIMES:
            tau_s, tau_t = jnp.minimum(start, length), jnp.maximum(start, length)
            return tau_s / (tau_t + maps.EPS_MAP), tau_s, tau_t
        tau_s = start * (1.0 - length)
        tau_t = tau_s + length
        return tau_t - tau_s, tau_s, tau_t
