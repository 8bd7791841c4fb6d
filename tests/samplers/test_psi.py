"""Options of the ancestral samplers: the last evaluation, psi-steps, their times, the cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from flm_jax.errors import UserError
from flm_jax.flow import discrete
from flm_jax.flow.head import Head
from flm_jax.flow.net import Net
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.randomness import sequence_keys
from flm_jax.flow.space import OneHot
from flm_jax.samplers import psi
from flm_jax.samplers.ancestral import AncestralMasked, AncestralUniform, Step
from flm_jax.sampling import Sampling

P = np.asarray([0.45, 0.3, 0.15, 0.07, 0.03])
V, D = len(P), 8
SAMPLERS = {"masked": AncestralMasked, "uniform": AncestralUniform}
LOOP = {"psi": "pure-posterior/constant-remdm-0.3/pure-posterior", "early": 0.3, "middle": 0.4}


def keys(size: int) -> jax.Array:
    return sequence_keys(jax.random.key(0), jnp.arange(size))


def constant_net(mask: bool) -> Net:
    """A network that answers P whatever it sees."""
    bias = jnp.pad(jnp.log(jnp.asarray(P, jnp.float32)), (0, int(mask)), constant_values=9.0)
    params = {
        "embed": {"table": jnp.zeros((V + mask, D))},
        "head": {"kernel": jnp.zeros((D, V + mask)), "bias": bias},
    }
    return Net(lambda params, h, s, t, key: (jnp.zeros_like(h), None), params, logit_cap=0.0)


def written(sampler, net, size, steps, length, trajectory=False, clock=None):
    clock = tiny.clock() if clock is None else clock

    @jax.jit
    def run(keys_B):
        at = tiny.at({"student": net}, OneHot, clock)
        return sampler.run(at, keys_B, Sampling(steps=steps), length, trajectory=trajectory)

    return run(keys(size))


def deviation(tokens, p) -> float:
    """Largest difference of frequencies from p, in standard deviations."""
    tokens, p = np.asarray(tokens).ravel(), np.asarray(p)
    frequency = np.bincount(tokens, minlength=len(p)) / tokens.size
    return np.max(np.abs(frequency - p) / np.sqrt(p * (1 - p) / tokens.size + 1e-12))


def one_step(sampler, now, step, size=20_000):
    """Many draws of a step from one token, for the prediction P."""
    head = Head(jnp.zeros((1, V)), jnp.log(jnp.asarray(P, jnp.float32)), cap=0.0, chunk=size)
    posterior = Posterior(jnp.zeros((20, size // 20, 1)), head)
    tokens = jnp.full((20, size // 20), now, jnp.int32)
    return jax.jit(lambda k: sampler.step(posterior, tokens, step, k))(keys(20))


def bayes(alpha_t: float, alpha_s: float, now: int, law: np.ndarray) -> np.ndarray:
    """The law of x_s given x_t = now, when the clean token has a law: from the transitions."""
    prior = alpha_s * law + (1 - alpha_s) / len(law)
    ratio = alpha_t / alpha_s
    likelihood = ratio * np.eye(len(law))[now] + (1 - ratio) / len(law)
    return prior * likelihood / np.sum(prior * likelihood)


def noised(law: np.ndarray, alpha: float) -> np.ndarray:
    return alpha * law + (1 - alpha) / len(law)


@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("alphas", [(0.2, 0.5), (0.6, 0.6)])
def test_a_uniform_psi_step_is_the_mixture_written_out(kappa, alphas):
    step, now = Step(0, *(jnp.asarray(a) for a in alphas), kappa), 2
    sampler = AncestralUniform(psi=f"constant-{kappa}", last="ancestral")
    back = bayes(*alphas, now, P)
    fresh = noised(bayes(alphas[0], 1.0, now, P), alphas[1])
    expected = kappa * back + (1 - kappa) * fresh
    mixture = discrete.uniform_psi_step(*step[1:], P[now], V)
    ours = mixture.stay * np.eye(V)[now] + mixture.predict * P + mixture.jump / V
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    assert deviation(one_step(sampler, now, step), expected) < 5


@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0])
def test_a_masked_psi_step_is_the_mixture_written_out(kappa):
    alpha_t, alpha_s = 0.2, 0.5
    sampler = AncestralMasked(psi=f"constant-{kappa}", last="ancestral")
    step = Step(0, jnp.asarray(alpha_t), jnp.asarray(alpha_s), kappa)
    show = kappa * (alpha_s - alpha_t) / (1 - alpha_t) + (1 - kappa) * alpha_s
    assert deviation(one_step(sampler, V, step), np.append(show * P, 1 - show)) < 5
    hide = (1 - kappa) * (1 - alpha_s)
    expected = np.append((1 - hide) * np.eye(V)[3], hide)
    assert deviation(one_step(sampler, 3, step), expected) < 5


@pytest.mark.parametrize("name", SAMPLERS)
def test_kappa_1_is_the_ancestral_sampler_itself(name):
    make = SAMPLERS[name]
    net = constant_net(name == "masked")
    ours, plain = (
        written(make(psi=rule), net, 4, 5, 12).tokens_BL for rule in ("constant-1", psi.POSTERIOR)
    )
    np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    "options",
    [{"psi": "pure-pc"}, {"psi": "max-rescale-0.5", "last": "ancestral"}, {**LOOP, "hold": 0.4}],
    ids=["pc", "rescale", "loop"],
)
def test_independent_tokens_keep_their_law_whatever_kappa(name, options):
    """A fresh draw of the noise has the marginal of its time, and so has every mixture."""
    sampler = SAMPLERS[name](**options)
    tokens_BL = written(sampler, constant_net(name == "masked"), 200, 9, 40).tokens_BL
    assert deviation(tokens_BL, P) < 5


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_nucleus_is_cut_from_the_prediction_before_the_step(name):
    """Chi-square of the law after several steps: P within its nucleus, renormalised."""
    from scipy import stats

    sampler = SAMPLERS[name](top_p=0.8, last="ancestral", psi="constant-0.5")
    tokens = np.asarray(written(sampler, constant_net(name == "masked"), 200, 6, 40).tokens_BL)
    kept = P[:3] / P[:3].sum()
    counts = np.bincount(tokens.ravel(), minlength=V)
    assert counts[3:].sum() == 0
    assert stats.chisquare(counts[:3], kept * tokens.size).pvalue > 1e-4


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_greedy_tail_ends_with_the_most_probable_tokens(name):
    net = constant_net(name == "masked")
    plain = written(SAMPLERS[name](), net, 30, 4, 40)
    tail = written(SAMPLERS[name](last="greedy"), net, 30, 5, 40)
    if name == "uniform":  # rewrites every token
        np.testing.assert_array_equal(tail.tokens_BL, P.argmax())
        np.testing.assert_array_equal(tail.evaluations_B, 5)
        return
    # Masked tokens only, of which hardly any is left: without one the evaluation is saved.
    np.testing.assert_array_equal(tail.evaluations_B, 4)
    np.testing.assert_array_equal(tail.tokens_BL, plain.tokens_BL)
    alone = written(SAMPLERS[name](last="greedy"), net, 30, 1, 40)
    np.testing.assert_array_equal(alone.tokens_BL, P.argmax())
    np.testing.assert_array_equal(alone.evaluations_B, 1)


def test_times_and_evaluations_of_the_official_grid():
    """N official steps are N + 1 evaluations, the last at 1e-5; ours alone end at 0."""
    times, kappas = AncestralUniform(last="ancestral").schedule(5)
    np.testing.assert_allclose(times, [*np.linspace(1, 1e-5, 5), 0.0])
    np.testing.assert_array_equal(kappas, 1)
    np.testing.assert_allclose(AncestralMasked().schedule(4).times, [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(AncestralUniform(begin=0.5).schedule(2).times, [0.5, 0.25, 0])
    one = AncestralMasked(last="greedy").schedule(1)
    np.testing.assert_array_equal(one.times, [1, 0])


def test_time_stands_still_in_the_middle():
    sampler = AncestralUniform(**LOOP, hold=0.4, last="ancestral")
    times, kappas = sampler.schedule(10)
    np.testing.assert_allclose(times[:3], [1, 0.7, 0.4])
    np.testing.assert_array_equal(times[3:7], 0.4)
    np.testing.assert_allclose(times[7:], [0.4, 0.200005, 1e-5, 0.0], rtol=1e-4)
    noise = 0.999 * 0.4
    np.testing.assert_allclose(kappas[3:6], 1 - 0.3 / noise, rtol=1e-6)
    np.testing.assert_array_equal(kappas[[0, 1, 2, 6, 7, 8, 9]], 1)


def test_the_rules_of_kappa():
    alphas = np.asarray([0.1, 0.4, 0.9])
    most = [0.6 / 0.1, 0.1 / 0.4]
    for text, sigmas in {
        "max-capped-0.3": [0.3, 0.25],
        "max-rescale-0.3": [0.09, 0.3 * most[1]],
        "constant-remdm-0.05": [0.05, 0.05],
    }.items():
        wanted = [max(1 - s / n, 0) for s, n in zip(sigmas, (0.6, 0.1), strict=True)]
        np.testing.assert_allclose(psi.Rule.read(text).kappas(alphas), [*wanted, 1.0], rtol=1e-6)
    for text, value in {"pure-posterior": 1, "pure-pc": 0, "constant-0.25": 0.25}.items():
        np.testing.assert_array_equal(psi.Rule.read(text).kappas(alphas), value)
    assert psi.Rule.read("max-capped-0.3").kappas(alphas[:1]).tolist() == [1.0]
    assert psi.Rule.read("max-capped-0.3").kappas(alphas[:0]).size == 0


def test_a_cache_saves_evaluations_and_changes_no_sample():
    model = tiny.model(V, mask_token=True)
    net, options = model.net(tiny.params(model)), (2, 24, 4)
    plain, cached = (
        written(AncestralMasked(cache=cache), net, *options, trajectory=True)
        for cache in (False, True)
    )
    np.testing.assert_array_equal(plain.tokens_BL, cached.tokens_BL)
    np.testing.assert_array_equal(plain.trajectory.states, cached.trajectory.states)
    np.testing.assert_array_equal(plain.evaluations_B, 24)
    states = np.asarray(cached.trajectory.states)
    changed = (states[1:] != states[:-1]).any((1, 2))
    np.testing.assert_array_equal(cached.evaluations_B, 1 + changed[:-1].sum())
    assert cached.evaluations_B[0] < 12
    confidence = [path.trajectory.confidence_SBL for path in (plain, cached)]
    np.testing.assert_allclose(*confidence, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "options", "sentence"),
    [
        (AncestralMasked, {"last": "argmax"}, "last='argmax' is not known; use none or ancestral"),
        (AncestralMasked, {"psi": "max-capped"}, "'max-capped' is no rule of kappa; write pure-po"),
        (AncestralUniform, {"psi": "constant-2"}, "is no rule of kappa"),
        (AncestralUniform, {"psi": "constant-1.2.3"}, "is no rule of kappa"),
        (AncestralUniform, {"psi": "pure-pc/pure-pc"}, "has 2 rules; give one, or three"),
        (AncestralUniform, {"early": 0.5}, "have no effect where psi='pure-posterior' is the same"),
        (AncestralUniform, {**LOOP, "early": 0.7}, "must be shares of the times, together at most"),
        (AncestralUniform, {**LOOP, "middle": float("nan")}, "must be shares of the times"),
        (AncestralUniform, {**LOOP, "hold": 1.5}, r"hold=1.5 must be a time in \(0, 1\]"),
        (AncestralUniform, {"hold": 0.5}, "holds the time in the middle of the way, but middle=0"),
        (AncestralUniform, {"begin": 0.0}, "begin=0.0 must be a time above 1e-05"),
        (
            AncestralMasked,
            {"order": "drawn", "last": "greedy"},
            "those of a diffusion, which order",
        ),
    ],
)
def test_bad_options_are_explained(make, options, sentence):
    with pytest.raises(UserError, match=sentence):
        make(**options)
