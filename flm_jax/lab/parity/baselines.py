"""The kinds baselines/mdlm* and baselines/duo*: masked and uniform diffusion on tokens."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.flow import clock as clock_lib
from flm_jax.flow import discrete
from flm_jax.flow.posterior import Posterior
from flm_jax.lab.parity import networks, objective
from flm_jax.lab.parity.checks import Checks
from flm_jax.lab.parity.goldens import Case, GoldenError
from flm_jax.losses.base import Batch, Loss
from flm_jax.losses.masked_diffusion import MaskedDiffusion
from flm_jax.losses.uniform_diffusion import UniformCurriculum, UniformDiffusion
from flm_jax.samplers.ancestral import Ancestral, AncestralMasked, AncestralUniform

NO_CAP = 0.0  # the baselines' logits are not capped
STEP = 1e-3  # of the difference that is the curriculum's derivative
NEAREST = 1.5e-4  # half a step of the curriculum's table, times the largest slope
FLOAT32 = 1e-7
TINY = 1e-10  # of the official draw


def masked_loss(case: Case, checks: Checks) -> None:
    """Loss per token and reduced, what led to it, and every gradient."""
    last_is_mask(case)
    mask = case.option("mask_index")

    def read(listener, loss, batch, clock):
        t = listener.first("times")
        seen = jnp.where(listener.first("masked"), mask, batch.tokens_BL)
        return {"mid/t": t, "mid/alpha_t": discrete.alpha(t), "mid/xt": seen}

    loss = MaskedDiffusion(t_min=case.option("sampling_eps"))
    compare_loss(case, checks, loss, {"mask": "draw/u_mask"}, ("times", "masked"), read)


def compare_loss(
    case: Case,
    checks: Checks,
    loss: Loss,
    draws: dict[str, str],
    methods: tuple[str, ...],
    read: Callable[..., dict[str, jax.Array]],
    make_clock: Callable[[], clock_lib.Clock] = clock_lib.identity,
) -> None:
    """`objective.compare_on_tokens` on recorded ``draws``, by our names and theirs."""
    family = networks.Family.read(case, cap=NO_CAP)

    def check(found):
        del found["out/num_tokens"]  # not recorded
        for name, array in found.items():
            if np.issubdtype(array.dtype, np.integer):
                checks.exact(name, array, case[name])
            else:
                checks.recorded(name, array)

    objective.compare_on_tokens(
        case, checks, family, family.params, loss, functools.partial(recorded, case, draws),
        methods, read, check, make_clock,
    )  # fmt: skip


def recorded(case: Case, names: dict[str, str]) -> tuple[Batch, dict[str, jax.Array]]:
    """The batch and the raw numbers of a loss. The official times are not permuted."""
    tokens_BL, mask_BL = networks.wide(case["in/x0"]), networks.wide(case["in/attention_mask"])
    index_B = jnp.arange(tokens_BL.shape[0], dtype=jnp.int32)
    draws = {"uniform": networks.wide(case["draw/eps"]), "permutation": index_B}
    draws |= {ours: networks.wide(case[theirs]) for ours, theirs in names.items()}
    return Batch(tokens_BL, mask_BL, index_B, tokens_BL.shape[0]), draws


def masked_step(case: Case, checks: Checks) -> None:
    """One step back, and the last one."""
    last_is_mask(case)

    def dense(posterior: Posterior, tokens_BL, alpha_t, alpha_s):
        """(p, q not normalised), both with the mask as last entry; shown tokens are certain."""
        mask = posterior.head.vocab_size
        p_BLV = jnp.pad(posterior.dense(), ((0, 0), (0, 0), (0, 1)))
        shown_BLV = jax.nn.one_hot(tokens_BL, mask + 1, dtype=p_BLV.dtype)
        p_BLV = jnp.where((tokens_BL == mask)[..., None], p_BLV, shown_BLV)
        show = discrete.unmask_probability(alpha_t, alpha_s)
        q_BLV = (show * p_BLV).at[..., mask].set(1.0 - show) * (1.0 - alpha_t)
        return p_BLV, q_BLV

    def keep(tokens_BL, drawn_BL):
        return np.where(tokens_BL == case.option("mask_index"), drawn_BL, tokens_BL)

    compare_step(case, checks, AncestralMasked(), dense, keep)


def compare_step(
    case: Case,
    checks: Checks,
    sampler: Ancestral,
    dense: Callable[..., tuple[jax.Array | None, jax.Array]],
    keep: Callable[..., np.ndarray] = lambda tokens_BL, drawn_BL: drawn_BL,
) -> None:
    """The distribution of a step, and the recorded draw from it by the official rule."""
    family = networks.Family.read(case, cap=NO_CAP)
    ((_, model),) = family.models
    t, dt = case.option("t"), case.option("dt")
    s = 0.0 if case.stem.endswith("last_step") else t - dt

    @jax.jit
    def predict(params, tokens_BL, alpha_t, alpha_s):
        posterior = sampler.posterior(model.net(params), tokens_BL, alpha_t)
        return dense(posterior, tokens_BL, alpha_t, alpha_s)

    for bits in (64, 32):
        with checks.precision(bits):
            tokens_BL, u_BLV = networks.wide(case["in/xt"]), networks.wide(case["draw/u"])
            alphas = (discrete.alpha(networks.wide(np.float64(time))) for time in (t, s))
            p_BLV, q_BLV = predict(family.params()["student"], tokens_BL, *alphas)
            checks.recorded("out/q_xs", q_BLV)
            if p_BLV is not None:
                checks.recorded("out/p_x0", p_BLV)
            drawn = np.argmax(np.asarray(q_BLV) / (TINY - np.log(np.asarray(u_BLV) + TINY)), -1)
            checks.exact("out/x_next", keep(np.asarray(tokens_BL), drawn), case["out/x_next"])


def uniform_loss(case: Case, checks: Checks) -> None:
    """Loss per token and reduced, what led to it, and every gradient."""

    def read(listener, loss, batch, clock):
        t, seen = listener.first("times"), listener.first("seen")
        alpha = discrete.alpha(t)
        return {"mid/t": t, "mid/alpha_t": alpha, "mid/sigma": -jnp.log(alpha), "mid/xt": seen}

    loss = UniformDiffusion(t_min=case.option("sampling_eps"))
    names = {"move": "draw/u_move", "anywhere": "draw/uniform_tokens"}
    compare_loss(case, checks, loss, names, ("times", "seen"), read)


def uniform_step(case: Case, checks: Checks) -> None:
    """One step back, and the last one."""

    def dense(posterior: Posterior, tokens_BL, alpha_t, alpha_s):
        p_BLV, vocab_size = posterior.dense(), posterior.head.vocab_size
        p_now_BL = jnp.exp(posterior.log_prob(tokens_BL))
        weights = discrete.uniform_step_back(alpha_t, alpha_s, p_now_BL, vocab_size)
        now_BLV = jax.nn.one_hot(tokens_BL, vocab_size, dtype=p_BLV.dtype)
        stay, predict, jump, total = (w[..., None] for w in (*weights, weights.total))
        return None, (stay * now_BLV + predict * p_BLV + jump / vocab_size) / total

    compare_step(case, checks, AncestralUniform(), dense)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["alpha_B", "rate_B"], meta_fields=[]
)
class Recorded(clock_lib.Clock):
    """A schedule that was looked up: alpha and its rate, instead of the tables of a clock."""

    def __init__(self, alpha_B: jax.Array, rate_B: jax.Array):
        super().__init__(None, None)
        self.alpha_B, self.rate_B = alpha_B, rate_B


@dataclasses.dataclass(frozen=True)
class Scheduled(UniformCurriculum):
    """The curriculum on a `Recorded` schedule."""

    def schedule(self, t_B: jax.Array, clock: clock_lib.Clock) -> tuple[jax.Array, jax.Array]:
        assert isinstance(clock, Recorded)
        return clock.alpha_B, clock.rate_B


def curriculum_loss(case: Case, checks: Checks) -> None:
    """Loss per token and reduced, what led to it, and every gradient; the schedule by itself.

    The official schedule is a table read at the nearest index and differences of it; ours comes
    from the clock. The loss is compared on the official schedule, both schedules with each other.
    """
    low, high = case.option("gamma_min"), case.option("gamma_max")
    temperature = 10.0 ** case.option("gumbel_tau_log10_start")
    options = {"gamma_min": low, "gamma_max": high, "temperature": temperature, "softmax": False}
    loss, vocab_size = Scheduled(**options), case.option("vocab_size")
    end = case.option("integral_gamma_min"), case.option("integral_gamma_max")
    grid = np.linspace(*end, case.option("integral_points"))
    u = 1.0 / (1.0 + np.exp(0.5 * grid))
    table = clock_lib.decoding_accuracy(u, vocab_size, "exact")
    accuracy = (table * (vocab_size - 1) + 1.0) / vocab_size
    checks.close("in/integral_pt", accuracy, case["in/integral_pt"], FLOAT32)

    def look_up(gamma):
        return table[np.rint((gamma - end[0]) / (end[1] - end[0]) * (len(grid) - 1)).astype(int)]

    def official():
        gamma = np.asarray(case["mid/gamma_t" if checks.bits == 32 else "mid64/gamma_t"], float)
        slope = (look_up(gamma + STEP) - look_up(gamma)) / STEP
        return Recorded(networks.wide(look_up(gamma)), networks.wide(-slope * (high - low)))

    def read(listener, loss, batch, clock):
        (alpha, rate), latent = listener.first("schedule"), listener.first("latent")
        return {
            "mid/t": listener.first("times"),
            "mid/gamma_t": listener.first("gamma"),
            "mid/alpha_t": alpha,
            "mid/dalpha_t": -rate,
            "mid/sigma": -jnp.log(alpha),
            "mid/xt": latent,
            "mid/xt_usdm": jnp.argmax(latent, axis=-1),
        }

    names, methods = {"noise": "draw/noise"}, ("times", "gamma", "schedule", "latent")
    compare_loss(case, checks, loss, names, methods, read, official)
    for bits in (64, 32):
        with checks.precision(bits):
            t, clock = loss.times(recorded(case, names)[1]), clock_lib.build(vocab_size, "exact")
            ours, expected = UniformCurriculum(**options).schedule(t, clock), official()
            checks.close("alpha of the clock", ours[0], expected.alpha_B, NEAREST)
            checks.close("its derivative", ours[1], expected.rate_B, 10 * NEAREST)


def last_is_mask(case: Case) -> None:
    """GoldenError unless the mask is the last token: ours always is."""
    vocab_size, mask = case.option("vocab_size"), case.option("mask_index")
    if mask != vocab_size - 1:
        raise GoldenError(f"the mask is token {mask}, not the last one of {vocab_size}")
