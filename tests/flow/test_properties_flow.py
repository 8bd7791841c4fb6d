"""Laws of the clock, of jumps and of lazy combinations, for any times, states and coefficients."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from properties import leaner

from flm_jax.flow import clock as clock_lib
from flm_jax.flow import maps
from flm_jax.flow.combination import array, one_hot
from flm_jax.flow.head import Head
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.vocabulary import entmax

N = 24  # times in an example
NEAR_ENDS = [0.0, 1.0, *(2.0**-k for k in (10, 23, 24)), *(1 - 2.0**-k for k in (10, 23, 24))]
TIME = st.sampled_from(NEAR_ENDS) | st.floats(0, 1, width=32, allow_subnormal=False)


def times(*shape, dtype=np.float32):
    return hnp.arrays(dtype, shape, elements=TIME, fill=st.nothing())


# The clock

VOCABULARIES = [2, 27, 30522]


@functools.cache
def clock(vocab_size, dtype):
    with jax.enable_x64(True):
        return clock_lib.build(vocab_size, dtype=dtype)


@pytest.mark.parametrize("vocab_size", VOCABULARIES)
@leaner
@hypothesis.given(times(N))
def test_the_clock_keeps_order_and_bounds_and_can_be_turned_back(vocab_size, x):
    near = np.nextafter(x, np.float32(0.5))  # neighbours: rounding must not change their order
    x = np.sort(np.concatenate([[0.0, 1.0], x, near]).astype(np.float32))
    with jax.enable_x64(True):
        narrow, wide = clock(vocab_size, jnp.float32), clock(vocab_size, jnp.float64)
        for name in ("to_t", "to_tau"):
            y, exact = (np.asarray(getattr(c, name)(x)) for c in (narrow, wide))
            assert y.dtype == exact.dtype == np.float32
            exact = np.asarray(getattr(wide, name)(x.astype(np.float64)))
            assert y[-1] == exact[-1] == 1.0 and y[0] <= 1e-6
            for values in (y, exact):
                assert (np.diff(values) >= 0).all() and values[0] >= 0
            np.testing.assert_allclose(y, exact, atol=1.2e-7)
        assert narrow.to_t(x)[0] == 0.0
        tau = x.astype(np.float64)
        back = np.asarray(wide.to_tau(wide.to_t(tau)))
        np.testing.assert_allclose(back, tau, atol=1e-8)  # two splines, not one and its inverse
        np.testing.assert_allclose(back[tau > 1e-6], tau[tau > 1e-6], atol=1e-10)
        # The other way round as far as the clock moves.
        t, slope = x.astype(np.float64), np.asarray(wide.dtau_dt(x.astype(np.float64)))
        back = np.asarray(wide.to_t(wide.to_tau(t)))
        np.testing.assert_allclose(back[slope > 0.01], t[slope > 0.01], atol=1e-7)
        assert np.isfinite(slope).all()


@leaner
@hypothesis.given(hnp.arrays(np.float32, N, elements=st.floats(-3, 3, width=32)))
def test_outside_of_its_range_a_clock_stays_at_its_ends(x):
    for built in (clock(27, jnp.float32), clock_lib.build(27)):
        t = np.asarray(built.to_t(x))
        np.testing.assert_array_equal(t, built.to_t(np.clip(x, 0, 1)))
        assert (t[x <= 0] == 0).all() and (t[x >= 1] == 1).all()


# Jumps


@jax.jit
def jumps(s, u, t, x, clean, other):
    (keep, add), (keep_next, add_next), whole = maps.jump(s, u), maps.jump(u, t), maps.jump(s, t)
    euler = maps.euler(s, t, 0.0)
    landed = keep_next * (keep * x + add * clean) + add_next * clean
    weights = maps.semigroup_weight(s, u, t), maps.semigroup_weight(s, u, t, 1e-3)
    mixture = weights[0] * clean + (1 - weights[0]) * other
    apart = (
        whole[0] * x + whole[1] * mixture,
        keep_next * (keep * x + add * clean) + add_next * other,
    )
    noisy = maps.gamma_noise(s, t, 0.8)
    return (keep, add, keep_next, add_next, *whole, *euler), landed, weights, apart, noisy


def states(dtype, *shape):
    return hnp.arrays(dtype, shape, elements=st.floats(-8, 8, width=32))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@leaner
@hypothesis.given(st.data())
def test_jumps_compose_and_their_weights_are_shares(dtype, data):
    s, u, t = np.sort(data.draw(times(3, N, dtype=dtype)), axis=0)
    x, clean, other = data.draw(states(dtype, 3, N))
    with jax.enable_x64(True):
        coefficients, landed, weights, apart, noisy = map(
            np.asarray, jumps(s, u, t, x, clean, other)
        )
    small = 4 * np.finfo(dtype).eps
    assert coefficients.dtype == landed.dtype == dtype
    assert (coefficients >= 0).all() and (coefficients <= 1 + small).all()
    keep, add = coefficients[::2], coefficients[1::2]
    np.testing.assert_allclose(keep + add, 1.0, atol=small)
    np.testing.assert_array_equal(keep[2][(t == 1) & (s < 1)], 0.0)  # nothing is left of the noise
    np.testing.assert_array_equal(keep[2][s == 1], 1.0)
    # What two jumps to one clean text give is what one gives.
    np.testing.assert_allclose(landed, keep[2] * x + add[2] * clean, atol=32 * small)
    assert (weights >= 0).all() and (weights <= 1 + small).all()
    np.testing.assert_array_equal(weights[:, t == 1], 0.0)
    # Two jumps to two texts give what one gives to their mixture.
    plain = (1 - u) * (t - s) > 0.01  # where the official 1e-8 in the weight is nothing
    np.testing.assert_allclose(apart[0][plain], apart[1][plain], atol=max(32 * small, 2e-5))
    # Fresh noise leaves the mean of a fixed clean text where it belongs.
    aim, keep_noisy, add_noisy, noise = noisy
    moves = s < 1
    mean = keep_noisy * s + add_noisy
    np.testing.assert_allclose(mean[moves], t[moves], atol=4 * small)
    assert (noise >= 0).all() and (aim >= t - small).all() and (aim <= 1).all()


@leaner
@hypothesis.given(st.integers(1, 300), st.sampled_from([0.5, 1.0, 1.5, 3.0, 8.0]))
def test_a_grid_rises_from_noise_to_data_and_never_stands(steps, power):
    tau = np.asarray(maps.grid(steps, power))
    assert tau.shape == (steps + 1,) and tau[0] == 0.0 and tau[-1] == 1.0
    assert (np.diff(tau) > 0).all()


# Combinations

B, L, D, V, W = 2, 3, 4, 5, 2
TABLE = np.linspace(-1, 1, V * W, dtype=np.float32).reshape(V, W)


def evaluated(chunk, arrays):
    """Every answer of one combination of all kinds, of its parts in other orders, of dense ones."""
    f, g, kernel, bias, tokens, dense, a, b_B, c_BL, d = arrays
    head = Head(kernel, bias, chunk=chunk)
    p, q = Posterior(f, head, g), Posterior(g, head, f)
    one = p.probability(a) + q.tangent(c_BL)
    two = p.logits(b_B) + one_hot(tokens, head, d) + p.probability(c_BL)
    three = array(dense, head, a) + q.tangent(b_B) + one_hot(tokens, head, c_BL)
    whole = (one + two) + three
    mine = {
        "dense": whole.dense(),
        "other order": (three + one + two).dense(),
        "other brackets": (one + (two + three)).dense(),
        "parts": one.dense() + two.dense() + three.dense(),
        "mean": whole.mean(jnp.asarray(TABLE)),
        "cross": whole.cross_entropy_to(q),
        "square": whole.squared_error_to(q.probability(a)),
        "logits square": whole.squared_error_to(p.logits(c_BL)),
        "log_prob": p.log_prob(tokens),
        "entropy": p.entropy(),
        "argmax": whole.argmax(),
    }

    raw = [x @ kernel + bias[None, None] for x in (f, g)]
    soft = [jax.nn.softmax(30 * jnp.tanh(x / 30)) for x in raw]

    def softmax(x):
        return jax.nn.softmax(30 * jnp.tanh((x @ kernel + bias[None, None]) / 30))

    tangent = jax.jvp(softmax, (g,), (f,))[1]
    hot = jax.nn.one_hot(tokens, V)
    b, c = b_B[:, None, None], c_BL[..., None]
    wanted = (a + c) * soft[0] + (c + b) * tangent + b * raw[0] + (d + c) * hot + a * dense
    theirs = {
        **dict.fromkeys(["dense", "other order", "other brackets", "parts"], wanted),
        "mean": wanted @ TABLE,
        "cross": -jnp.sum(wanted * jnp.log(soft[1]), -1),
        "square": jnp.sum((wanted - a * soft[1]) ** 2, -1),
        "logits square": jnp.sum((wanted - c * raw[0]) ** 2, -1),
        "log_prob": jnp.sum(hot * jnp.log(soft[0]), -1),
        "entropy": -jnp.sum(soft[0] * jnp.log(soft[0]), -1),
    }
    return mine, theirs


@functools.cache
def program(chunk):
    return jax.jit(functools.partial(evaluated, chunk))


NUMBERS = st.floats(-2, 2, width=32, allow_subnormal=False)


def numbers(*shape):
    return hnp.arrays(np.float32, shape, elements=NUMBERS, fill=st.nothing())


@leaner
@hypothesis.given(
    st.tuples(
        *(numbers(*shape) for shape in [(B, L, D), (B, L, D), (D, V), (V,)]),
        hnp.arrays(np.int32, (B, L), elements=st.integers(0, V - 1)),
        *(numbers(*shape) for shape in [(B, L, V), (), (B,), (B, L), ()]),
    ),
    st.sampled_from([1, 2, 5, 1000]),
)
def test_combinations_are_what_their_dense_arrays_are(arrays, chunk):
    mine, theirs = jax.tree.map(np.asarray, program(chunk)(arrays))
    for name, wanted in theirs.items():
        scale = 1 + np.abs(wanted).max()
        np.testing.assert_allclose(mine[name] / scale, wanted / scale, atol=2e-5, err_msg=name)
    largest = np.take_along_axis(theirs["dense"], mine["argmax"][..., None], -1)
    np.testing.assert_allclose(largest[..., 0], theirs["dense"].max(-1), atol=1e-4)


@functools.cache
def projected(alpha):
    return jax.jit(lambda scores: entmax(scores, alpha))


@pytest.mark.parametrize("alpha", [1.3, 1.5, 2.0])
@leaner
@hypothesis.given(hnp.arrays(np.float32, (4, V), elements=st.floats(-50, 50, width=32)))
def test_entmax_is_a_point_of_the_simplex_that_keeps_order(alpha, scores):
    p = np.asarray(projected(alpha)(scores))
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(-1), 1.0, atol=1e-5)
    order = np.argsort(scores, axis=-1)
    assert (np.diff(np.take_along_axis(p, order, -1), axis=-1) >= 0).all()
    shifted = np.asarray(projected(alpha)(scores + np.float32(8)))
    np.testing.assert_allclose(shifted, p, atol=1e-4)
    # It is the best point: no vertex of the simplex is uphill of <p, scores> + Tsallis entropy.
    uphill = scores.astype(np.float64) - p.astype(np.float64) ** (alpha - 1) / (alpha - 1)
    slope = uphill - np.sum(p * uphill, -1, keepdims=True)
    assert (slope <= 2e-3).all()


@leaner
@hypothesis.given(hnp.arrays(np.float32, (4, V), elements=st.floats(-50, 50, width=32)))
def test_the_euclidean_projection_is_one(scores):
    p = np.asarray(projected(2.0)(scores))
    np.testing.assert_allclose(projected(2.0)(p), p, atol=2e-6)  # twice is once
    best = ((scores - p) ** 2).sum(-1)
    for vertex in np.eye(V, dtype=np.float32):
        for share in (0.01, 0.5, 1.0):
            other = (1 - share) * p + share * vertex
            assert (((scores - other) ** 2).sum(-1) >= best * (1 - 1e-5) - 1e-5).all()
