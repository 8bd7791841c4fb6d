"""The kinds sdtt_sample, mdlm_sample, duo_sample, psi_sample: steps of samplers of tokens.

Ours draw from the laws of the steps without a race over the vocabulary. Here the laws are compared,
and the samplers' own loop runs on the recorded races.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.flow import clock as clock_lib
from flm_jax.flow import discrete
from flm_jax.flow import space as space_lib
from flm_jax.flow.at import STUDENT, At, MakeNet
from flm_jax.flow.net import Params
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.randomness import sequence_keys
from flm_jax.flow.vocabulary import nucleus
from flm_jax.host import numerics
from flm_jax.lab.parity import networks
from flm_jax.lab.parity.baselines import NO_CAP, last_is_mask
from flm_jax.lab.parity.checks import Checks
from flm_jax.lab.parity.goldens import Case
from flm_jax.lab.parity.rounds import close_in_part, race
from flm_jax.samplers.ancestral import (
    ANCESTRAL,
    GREEDY,
    NEAR_DATA,
    Ancestral,
    AncestralMasked,
    AncestralUniform,
    Schedule,
    Step,
)
from flm_jax.sampling import Sampling

HELD = "linear-constant-linear-"
TIME32 = 2e-7


class Recorded(NamedTuple):
    """How a kind has its arrays: their names, without the number of steps.

    ``masks_only``: the law of a step counts where a token is masked; ``times_noise``: it is then
    multiplied by the share of tokens that are noise.
    """

    times: str = "mid/times"
    law: str = "mid/q"
    masks_only: bool = False
    times_noise: bool = False


def law(sampler: Ancestral, posterior: Posterior, tokens_BL: jax.Array, step: Step) -> jax.Array:
    """The distribution of the tokens after a step, (B, L, V) with all classes of the network."""

    def cut(logits):
        return jax.nn.softmax(nucleus(logits, sampler.top_p) if sampler.top_p < 1.0 else logits)

    p_BLV = posterior.each_chunk(cut)
    if isinstance(sampler, AncestralUniform):
        weights = sampler.weights(posterior, tokens_BL, step).normalised()
        now_BLV = jax.nn.one_hot(tokens_BL, p_BLV.shape[-1], dtype=p_BLV.dtype)
        stay, predict, jump = (w[..., None] for w in weights)
        return stay * now_BLV + predict * p_BLV + jump / p_BLV.shape[-1]
    mask = p_BLV.shape[-1]
    show, hide = discrete.unmask_and_mask(*step[1:])
    p_BLV = jnp.pad(p_BLV, ((0, 0), (0, 0), (0, 1)))
    now_BLV, to_mask_V = (jax.nn.one_hot(x, mask + 1, dtype=p_BLV.dtype) for x in (tokens_BL, mask))
    is_mask_BL1 = (tokens_BL == mask)[..., None]
    kept_BLV, leave = jnp.where(is_mask_BL1, p_BLV, now_BLV), jnp.where(is_mask_BL1, 1 - show, hide)
    return (1 - leave) * kept_BLV + leave * to_mask_V[None, None]


def raced(
    base: type[Ancestral], u_SBLV: jax.Array, prefix_BL: jax.Array | None, end: float
) -> type[Ancestral]:
    """The sampler on recorded races; its grid ends at the time ``end``.

    A given prefix is written again after every step.
    """

    class Raced(base):
        def schedule(self, steps: int) -> Schedule:
            if end == NEAR_DATA:
                return super().schedule(steps)
            return Schedule(np.append(np.linspace(1.0, end, steps), 0.0), np.ones(steps))

        def step(
            self, posterior: Posterior, tokens_BL: jax.Array, step: Step, keys_B: jax.Array
        ) -> jax.Array:
            # After the last recorded race comes the greedy tail, which draws nothing.
            u_BLV = u_SBLV[jnp.minimum(step.number, len(u_SBLV) - 1)]
            after_BL = race(law(self, posterior, tokens_BL, step), u_BLV)
            if prefix_BL is None:
                return after_BL
            return after_BL.at[:, : prefix_BL.shape[1]].set(prefix_BL)

    return Raced


def compare(
    case: Case,
    checks: Checks,
    base: type[Ancestral],
    options: dict[str, Any],
    recorded: Recorded,
) -> None:
    """Every number of steps of a case."""
    family = networks.Family.read(case, cap=NO_CAP)
    ((_, model),) = family.models
    end = case.config.get("sampling_eps", NEAR_DATA)
    for n in case.option("steps"):
        for bits in (64, 32):
            with checks.precision(bits):
                u_SBLV = networks.wide(case[f"draw/u_s{n}"])
                prefix_BL = networks.wide(case["in/prefix"]) if case.config.get("prefix") else None
                sampler = raced(base, u_SBLV, prefix_BL, end)(**options)
                params = family.params()[STUDENT]
                _schedule(case, checks, sampler, n, recorded)
                _laws(case, checks, sampler, n, recorded, params, model.net)
                _run(case, checks, sampler, n, params, model.net)


def _schedule(case: Case, checks: Checks, sampler: Ancestral, n: int, recorded: Recorded) -> None:
    """Times and kappas of the steps; the last kappa is recorded and not used."""
    times, kappas = sampler.schedule(n + 1)
    theirs = case[f"{recorded.times}_s{n}"]
    checks.close(f"{recorded.times}_s{n}", times[: len(theirs)], theirs, TIME32)
    if f"mid/kappas_s{n}" in case:
        checks.close(f"mid/kappas_s{n}", kappas[:n], case[f"mid/kappas_s{n}"][:n], TIME32)


def _laws(
    case: Case,
    checks: Checks,
    sampler: Ancestral,
    n: int,
    recorded: Recorded,
    params: Params,
    make_net: MakeNet,
) -> None:
    """The distribution of every recorded step from the recorded state before it."""
    name = f"{recorded.law}_s{n}"
    times, kappas = (networks.wide(x) for x in sampler.schedule(n + 1))
    states_SBL, alphas = networks.wide(case[f"mid/states_s{n}"]), discrete.alpha(times)
    count = len(case[f"draw/u_s{n}"])  # a law beyond the races is the arg max of a prediction

    @jax.jit
    def laws(params):
        net = make_net(params)

        def one(i):
            step = Step(i, alphas[i], alphas[i + 1], kappas[i])
            posterior = sampler.posterior(net, states_SBL[i], step.alpha_t)
            return law(sampler, posterior, states_SBL[i], step)

        return jax.lax.map(one, jnp.arange(count))

    ours, theirs = np.asarray(laws(params), float), case[name][:count].astype(float)
    wide = case[name.replace("/", "64/", 1)][:count]
    if recorded.times_noise:
        ours = ours * (1.0 - np.asarray(alphas, float)[:count, None, None, None])
    if recorded.masks_only:
        masked = case[f"mid/states_s{n}"][:count, ..., None] == case.option("mask_index")
        ours, theirs, wide = (np.where(masked, x, 0.0) for x in (ours, theirs, wide))
    close_in_part(checks, name, ours, theirs, wide)
    if f"mid/last_logits_s{n}" in case and checks.bits == 32:
        _last(case, checks, sampler, n, params, make_net)


def _last(
    case: Case, checks: Checks, sampler: Ancestral, n: int, params: Params, make_net: MakeNet
) -> None:
    """What the greedy tail takes the arg max of."""
    name, times = f"mid/last_logits_s{n}", networks.wide(sampler.schedule(n + 1).times)
    tokens_BL = networks.wide(case[f"mid/states_s{n}"][n])
    posterior = sampler.posterior(make_net(params), tokens_BL, discrete.alpha(times[n]))
    checks.recorded(name, posterior.each_chunk(lambda logits: logits))


def _run(
    case: Case, checks: Checks, sampler: Ancestral, n: int, params: Params, make_net: MakeNet
) -> None:
    """The loop of the sampler itself: every state, the tokens, the evaluations."""
    states_SBL = case[f"mid/states_s{n}"]
    rows, length = states_SBL.shape[1:]
    keys_B = sequence_keys(numerics.key(0), jnp.arange(rows))

    @jax.jit
    def write(params, start_BL):
        net = make_net(params)
        at = At({STUDENT: net}, space_lib.OneHot({STUDENT: net.table}), clock_lib.identity())
        sampling = Sampling(steps=n + 1)
        return sampler.run(at, keys_B, sampling, length, start=start_BL, trajectory=True)

    written = write(params, networks.wide(states_SBL[0]))
    checks.exact(f"mid/states_s{n}", written.trajectory.states[: len(states_SBL)], states_SBL)
    checks.exact(f"out/tokens_s{n}", written.tokens_BL, case[f"out/tokens_s{n}"])
    checks.exact(f"out/nfe_s{n}", written.evaluations_B, np.full(rows, case[f"out/nfe_s{n}"]))


def sdtt(case: Case, checks: Checks) -> None:
    """SDTT's own sampler: ancestral steps, the analytic ones having the same law, then a tail.

    Its last evaluation is made if a mask is left.
    """
    last_is_mask(case)
    ancestral = case.option("sampler") == "ancestral"
    recorded = Recorded("mid/t", "mid/q_xs", masks_only=True, times_noise=ancestral)
    compare(case, checks, AncestralMasked, {"last": GREEDY}, recorded)


def duo(case: Case, checks: Checks) -> None:
    """Uniform diffusion: ancestral steps, greedy tail, nucleus of the prediction, psi."""
    compare(case, checks, AncestralUniform, _options(case), Recorded())


def mdlm(case: Case, checks: Checks) -> None:
    """Masked diffusion: ancestral steps with a cache, analytic ones, psi."""
    last_is_mask(case)
    cache = case.option("predictor") == "ancestral_cache"
    recorded = Recorded(masks_only=cache, times_noise=cache)
    compare(case, checks, AncestralMasked, _options(case) | {"cache": cache}, recorded)


def psi(case: Case, checks: Checks) -> None:
    (mdlm if case.option("algo") == "mdlm" else duo)(case, checks)


def _options(case: Case) -> dict[str, Any]:
    """Options of the sampler from recorded ones."""
    options = {
        "last": {"ancestral": ANCESTRAL, "greedy": GREEDY}[case.option("noise_removal")],
        "top_p": case.option("p_nucleus"),
    }
    if "psi" not in case.config:
        return options
    asked = case.option("psi")
    modes = [asked[f"{part}_mode"] for part in ("high", "middle", "low")]
    options |= {"psi": "/".join(modes if len(set(modes)) > 1 else modes[:1])}
    if asked["time_profile"].startswith(HELD):
        value, *inverse = asked["time_profile"].removeprefix(HELD).split("-")
        # With "-inv" the time at which alpha has that value is taken as 1 - alpha.
        options["hold"] = 1.0 - float(value) if inverse else float(value)
    if asked["high_frac"] or asked["middle_frac"]:
        options |= {"early": asked["high_frac"], "middle": asked["middle_frac"]}
    return options
