"""White coordinates: the bounds of exact denoisers are the likelihood, and the gap is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_nets
from exact_rows import PAIRS, Rows, single

from flm_jax.flow import noise
from flm_jax.flow.at import STUDENT, At
from flm_jax.flow.clock import identity
from flm_jax.flow.space import OneHot, Projected
from flm_jax.flow.whitened import Whitened, coordinates

TOKENS = single(np.array([0.5, 0.3, 0.15, 0.05]))
LINE = np.array([[-1.0], [0.3], [1.2], [2.0]])  # of one dimension: integrals by quadrature


@pytest.fixture(autouse=True)
def _wide():
    with jax.enable_x64(True):
        yield


def whitened(rows: Rows, table_VD, projected: bool = True) -> Whitened:
    at = rows.at(table_VD, projected, jnp.float64)
    return Whitened(at, coordinates(at))


def normal_grid(dimensions: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (P, dimensions) and weights (P,) of the integral over a standard normal."""
    x, w = np.polynomial.hermite_e.hermegauss(count)
    points = np.array(list(itertools.product(x, repeat=dimensions)))
    weights = np.array([np.prod(ws) for ws in itertools.product(w, repeat=dimensions)])
    return points, weights / weights.sum()


def variational(flow: Whitened, tokens_L, rho_K: np.ndarray, z_PW, w_P) -> float:
    """The bound of one row by quadrature over time and noise."""
    z_PLW = jnp.asarray(z_PW).reshape(len(z_PW), len(tokens_L), -1)
    tokens_PL = jnp.broadcast_to(jnp.asarray(tokens_L)[None], z_PLW.shape[:2])

    @jax.jit
    def at_time(rho):
        rho_P = jnp.full(len(z_PW), rho)
        posterior = flow.posterior(flow.noisy(z_PLW, tokens_PL, rho_P), rho_P)
        error_P = flow.squared_error(posterior, tokens_PL).sum(axis=1)
        return jnp.dot(w_P, error_P), -jnp.dot(w_P, posterior.log_prob(tokens_PL).sum(axis=1))

    error_K, nll_K = (np.array(x) for x in zip(*map(at_time, rho_K), strict=True))
    return np.trapezoid(rho_K * error_K, rho_K) + nll_K[-1]


@pytest.mark.parametrize("last", [1.0, 6.0])
def test_variational_bound_of_an_exact_denoiser_is_the_likelihood_of_every_token(last):
    flow, rho_K = whitened(TOKENS, LINE), np.linspace(0.0, last, 400)
    grid = normal_grid(1, 60)
    found = [variational(flow, row, rho_K, *grid) for row in TOKENS.tokens_KL]
    np.testing.assert_allclose(found, TOKENS.nats_K, atol=2e-4)


@pytest.mark.slow
def test_gap_of_two_tokens_is_what_they_tell_of_each_other_at_the_end():
    """The text is named token by token at the last time, which loses their dependence there."""
    flow, last = whitened(PAIRS, np.array([[-1.0], [1.0]])), 1.5
    z_PW, w_P = normal_grid(2, 40)
    rho_K = np.linspace(0.0, last, 200)
    found_K = [variational(flow, row, rho_K, z_PW, w_P) for row in PAIRS.tokens_KL]
    clean_KL = np.asarray(coordinates(flow.at)[1])[PAIRS.tokens_KL][..., 0]
    gap = 0.0
    for p, clean_L in zip(PAIRS.p_K, clean_KL, strict=True):
        u_PL = z_PW + last * clean_L
        joint_PK = np.log(PAIRS.p_K) - 0.5 * ((u_PL[:, None] - last * clean_KL) ** 2).sum(-1)
        joint_PK = np.exp(joint_PK) / np.exp(joint_PK).sum(1, keepdims=True)
        joint = joint_PK.reshape(-1, 2, 2)
        product = joint.sum(2)[:, :, None] * joint.sum(1)[:, None, :]
        gap += p * np.dot(w_P, (joint * np.log(joint / product)).sum((1, 2)))
    excess = np.dot(PAIRS.p_K, found_K - PAIRS.nats_K)
    assert gap > 0.005
    assert excess == pytest.approx(gap, abs=2e-4)


def ode(flow: Whitened, tokens_NL, last: float, steps: int, seed: int = 0) -> np.ndarray:
    """The other bound, of every row with noise of its own."""
    keys_N = jax.random.split(jax.random.key(seed), len(tokens_NL))
    z_NLW = flow.noise(keys_N, tokens_NL.shape[1]).astype(jnp.float64)
    rho_N = jnp.full(len(tokens_NL), last)
    u_NLW = flow.noisy(z_NLW, jnp.asarray(tokens_NL), rho_N)
    nll_N = -flow.posterior(u_NLW, rho_N).log_prob(jnp.asarray(tokens_NL)).sum(axis=1)
    rho_K = jnp.linspace(last, 0.0, steps + 1)
    start, divergence_N = jax.jit(flow.back_to_noise)(u_NLW, rho_K, keys_N)
    return np.asarray(nll_N + 0.5 * (start**2 - z_NLW**2).sum((1, 2)) + divergence_N)


@pytest.mark.parametrize("last", [0.7, 4.0])
def test_density_of_the_flow_is_the_likelihood_for_every_noise(last):
    """One token, one dimension (where a probe gives the trace itself): no gap, and no variance."""
    tokens_NL = np.repeat(TOKENS.tokens_KL, 8, axis=0)
    flow = whitened(TOKENS, LINE)
    wrong = [
        np.abs(ode(flow, tokens_NL, last, steps) - np.repeat(TOKENS.nats_K, 8)).max()
        for steps in (20, 40, 80)
    ]
    assert wrong[2] < 1e-3
    assert wrong[0] / wrong[1] > 3 and wrong[1] / wrong[2] > 3  # an error of second order


@pytest.mark.slow
def test_density_of_the_flow_bounds_two_tokens():
    flow = whitened(PAIRS, np.array([[-1.0], [1.0]]))
    rows = PAIRS.drawn(4000)
    excess_N = ode(flow, rows, 1.5, 30) - PAIRS.nats_K[PAIRS.which(rows)]
    error = excess_N.std() / len(excess_N) ** 0.5
    assert error < 0.01 and excess_N.mean() > 0.002
    late_N = ode(flow, rows, 8.0, 60) - PAIRS.nats_K[PAIRS.which(rows)]
    assert abs(late_N.mean()) < 4 * late_N.std() / len(late_N) ** 0.5 + 1e-3


def random_flow(space: str, vocab_size: int, width: int) -> Whitened:
    """A network of no meaning that sees all positions."""
    net = small_nets.net(small_nets.params(3, vocab_size, width), chunk=4)
    make = Projected if space == "projected" else OneHot
    at = At({STUDENT: net}, make({STUDENT: net.table}), identity())
    return Whitened(at, coordinates(at))


@pytest.mark.parametrize("space", ["onehot", "projected"])
def test_divergence_is_the_trace_of_the_jacobian(space):
    flow = random_flow(space, 5, 3)
    shape = (1, 2, flow.width)
    u = jnp.asarray(np.random.default_rng(0).standard_normal(shape))
    rho_B = jnp.full(1, 0.8)

    def slope(flat):
        return flow.mean(flow.posterior(flat.reshape(shape), rho_B)).ravel()

    jacobian = jax.jacfwd(slope)(u.ravel())
    probes = jnp.asarray(list(itertools.product([-1.0, 1.0], repeat=u.size)))
    _, traces = jax.jit(jax.vmap(lambda v: flow.slope(u, rho_B, v.reshape(shape))))(probes)
    assert float(traces.std()) > 1e-3
    assert float(traces.mean()) == pytest.approx(float(jnp.trace(jacobian)), rel=1e-9)
    mean, _ = flow.slope(u, rho_B, probes[0].reshape(shape))
    np.testing.assert_allclose(mean.ravel(), slope(u.ravel()), rtol=1e-12)


@pytest.mark.parametrize("width", [1, 3, 7])
def test_white_error_never_exceeds_the_one_hot_error(width):
    projected, dense = random_flow("projected", 7, width), random_flow("onehot", 7, width)
    key = jax.random.key(width)
    tokens_BL = jax.random.randint(key, (50, 4), 0, 7)
    state = jax.random.normal(key, (50, 4, width))
    posterior = projected.at.student(state, jnp.full(50, 0.4)).posterior
    white_BL = projected.squared_error(posterior, tokens_BL)
    dense_BL = dense.squared_error(posterior, tokens_BL)
    assert bool((white_BL <= dense_BL * (1 + 1e-12)).all())
    share = float((white_BL / dense_BL).mean())
    assert 0.9 < share <= 1.0 if width == 7 else share < 0.9  # seven dimensions see everything


def test_both_spaces_agree_where_the_table_can_be_inverted():
    """The same dense noise, seen in both: same errors, same densities, up to eta."""
    size = 5
    table = np.linalg.qr(np.random.default_rng(1).standard_normal((size, size)))[0]
    rows = Rows(np.array([[0, 1, 2], [3, 1, 4], [2, 2, 0]]), np.array([0.5, 0.3, 0.2]), size)
    white = whitened(rows, table)
    dense = whitened(rows, np.eye(size), projected=False)
    key = jax.random.split(jax.random.key(0), 3)
    z_BLV, rho_B = dense.noise(key, 3).astype(jnp.float64), jnp.array([0.5, 1.5, 3.0])
    tokens_BL = jnp.asarray(rows.tokens_KL)
    z_BLW = noise.raw_of_dense([jnp.asarray(table)], z_BLV)
    errors, nats = [], []
    for flow, z in ((dense, z_BLV), (white, z_BLW)):
        posterior = flow.posterior(flow.noisy(z, tokens_BL, rho_B), rho_B)
        errors.append(flow.squared_error(posterior, tokens_BL))
        nats.append(posterior.log_prob(tokens_BL))
    assert float(errors[0].mean()) > 0.05
    np.testing.assert_allclose(errors[1], errors[0], rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(nats[1], nats[0], rtol=1e-3, atol=1e-9)


def test_tokens_of_one_vector_cost_what_tells_them_apart():
    """A table in which two tokens are the same: finite, and the bound pays for the choice."""
    rows = single(np.array([0.5, 0.25, 0.25]))
    flow = whitened(rows, np.array([[-1.0, 0.2], [1.0, 0.5], [1.0, 0.5]]))
    grid = normal_grid(2, 24)
    found = [variational(flow, row, np.linspace(0, 6.0, 300), *grid) for row in rows.tokens_KL]
    np.testing.assert_allclose(found, rows.nats_K, atol=1e-3)


def test_float32_near_the_end_is_as_exact_as_the_noise():
    """At rho = 1000 the error is 0, and rounding may not add to the bound: half rho^2 times it."""
    table = np.random.default_rng(0).standard_normal((64, 8))
    with jax.enable_x64(False):
        at = single(np.full(64, 1 / 64)).at(table)
        flow = Whitened(at, coordinates(at))
        keys, tokens_BL = jax.random.split(jax.random.key(0), 64), jnp.arange(64)[:, None]
        rho_B = jnp.full(64, 1000.0)
        posterior = flow.posterior(flow.noisy(flow.noise(keys, 1), tokens_BL, rho_B), rho_B)
        error_BL = flow.squared_error(posterior, tokens_BL)
    assert error_BL.dtype == jnp.float32
    assert float(0.5 * 1000.0**2 * error_BL.max()) < 1e-4
