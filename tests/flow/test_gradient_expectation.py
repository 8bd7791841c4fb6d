"""The gradient is the one-hot space's in expectation: trained networks, real text, every loss.

Given the noise, the two spaces have different gradients of the table: `test_flow_map_spaces.py`
compares them exactly. Here nothing is given: each space draws its own noise, as in training, and
means over many draws are compared, by the very function that trains (`step.make_gradients`). A draw
has the same times in both spaces, so that only the noise blurs the difference.
"""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from flm_jax import config as config_lib
from flm_jax.data import load_data
from flm_jax.flow import clock as clock_lib
from flm_jax.flow.space import OneHot, Projected
from flm_jax.losses import LOSSES
from flm_jax.models import transfer
from flm_jax.training import step as step_lib

B, L, V = 32, 16, 128  # V > 2 W with three tables of width 16 side by side
MODEL = dict(width=16, depth=1, heads=2, cond_dim=8, head_chunk=B * L, head_init="table")
# Of the noise of a batch, in each space. Fewer are not enough: rows of rare tokens have few and
# skewed contributions, whose mean over 256 draws is not yet symmetric, as the judgement assumes.
DRAWS = {
    "flow_matching": 1024,
    "psd": 256,
    "any_order": 256,
    "lsd": 256,
    "esd": 256,
    "residual": 256,
    "second_stage": 256,
}
BLOCKS = 64  # means over a block of draws are kept
FLIPS = 200_000
LARGEST = 4.0  # of 36 scores; by chance in one of 500 seeds
KEY = jax.random.key(0)


@functools.cache
def clock():
    return clock_lib.build(V)


def model(name: str):
    return tiny.model(V, **MODEL | tiny.needs(LOSSES[name]()))


def others_of(name: str, trained: dict) -> dict:
    """The parameters of the networks beside the student, by role."""
    loss = LOSSES[name]()
    roles = {"teacher": loss.needs.teacher, "residual": loss.needs.residual}
    return {role: trained[role] for role, needed in roles.items() if needed}


def make_gradients(name: str, make_space):
    nets = {"student": model(name).net, "teacher": tiny.model(V, **MODEL).net}
    nets["residual"] = model("residual").net
    nets |= dict.fromkeys(jax.eval_shape(lambda: LOSSES[name]().first_state({})), model(name).net)
    loss = config_lib.build(LOSSES, name, {}, "loss")
    return step_lib.make_gradients(nets, loss, make_space, clock())


def train(name: str, params: dict, others: dict, rows, steps: int) -> dict:
    """The parameters after some steps of Adam on the text."""
    gradients, adam = make_gradients(name, Projected), optax.adam(3e-3)

    def step(carry, n):
        params, state = carry
        key = jax.random.fold_in(KEY, n)
        tokens = jax.random.choice(key, rows, (B,), replace=False)
        grads, metrics = gradients(params, others, tokens, jnp.ones((B, L)), key)
        updates, state = adam.update(grads, state)
        return (optax.apply_updates(params, updates), state), metrics["loss"]

    run = jax.jit(lambda params: jax.lax.scan(step, (params, adam.init(params)), jnp.arange(steps)))
    (params, _), losses_N = run(params)
    assert name != "flow_matching" or losses_N[-10:].mean() < 0.7 * np.log(V)  # it has learnt
    return params


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(rows of text, the parameters of a denoiser, a flow map and a correction)."""
    data = load_data(
        {"name": "unicode_names", "length": L, "cache_dir": str(tmp_path_factory.mktemp("text"))},
        {"name": "sentencepiece", "options": {"vocab_size": V}},
    )
    assert data.tokenizer.vocab_size == V
    rows = jnp.asarray(data.rows["train"][:2048])
    fresh = jax.jit(tiny.model(V, **MODEL).init)(KEY)
    teacher = train("flow_matching", fresh, {}, rows, 400)
    found = {"teacher": teacher}
    for role, name in {"student": "psd", "residual": "residual"}.items():
        start = transfer.student_from(jax.jit(model(name).init)(KEY), teacher, role == "residual")
        found[role] = train(name, start, {"teacher": teacher}, rows, 100)
    return rows, found


def block_means(name: str, make_space, params, others, rows, draws):
    """{group: (BLOCKS, numbers)}: means of the gradient over disjoint sets of draws."""
    gradients = make_gradients(name, make_space)

    def block(_, n):
        def add(total, m):
            key = jax.random.fold_in(jax.random.fold_in(KEY, n), m)
            grads, _ = gradients(params, others, rows[:B], jnp.ones((B, L)), key)
            return jax.tree.map(jnp.add, total, grads), None

        zeros = jax.tree.map(jnp.zeros_like, params)
        each = draws // BLOCKS
        total, _ = jax.lax.scan(add, zeros, jnp.arange(each))
        return None, groups(jax.tree.map(lambda x: x / each, total))

    return jax.jit(lambda: jax.lax.scan(block, None, jnp.arange(BLOCKS))[1])()


def groups(tree: dict) -> dict:
    """Gradients of backbone, head and table as vectors."""
    rest = {name: leaf for name, leaf in tree.items() if name not in ("embed", "head")}
    parts = {"backbone": rest, "head": tree["head"], "table": tree["embed"]}
    return {k: jnp.concatenate([x.ravel() for x in jax.tree.leaves(v)]) for k, v in parts.items()}


def scores(projected_NP, onehot_NP) -> dict[str, float]:
    """How far the mean difference is from zero, in standard errors, seen in two ways.

    "along" is its component along the gradient itself; "any" its squared length with every number
    measured by its own deviation, so that an error may hide in no direction.
    """
    p, o = (np.asarray(x, np.float64) for x in (projected_NP, onehot_NP))
    difference = p - o
    some = BLOCKS // 4
    direction = (p + o)[:some].mean(0)  # must not know the numbers that it judges
    along = difference[some:] @ direction
    deviation = difference.std(0)
    return {
        "along": along.mean() / (along.std(ddof=1) / len(along) ** 0.5),
        "any": surplus(difference / np.where(deviation > 0, deviation, 1.0)),
    }


def surplus(difference_NP: np.ndarray) -> float:
    """The squared length of the mean beyond what chance explains, as a normal score.

    It is counted how often it is as long with blocks of random sign. A few directions have nearly
    all of the length, so that it is far from normal itself.
    """
    gram = difference_NP @ difference_NP.T
    np.fill_diagonal(gram, 0.0)
    flips = np.random.default_rng(0).choice([-1.0, 1.0], (FLIPS, len(gram)))
    chance = np.sum((flips @ gram) * flips, axis=1)
    share = (1 + np.sum(chance >= gram.sum())) / (1 + FLIPS)
    return statistics.NormalDist().inv_cdf(1 - share) if share < 1 else -np.inf


def in_space(name: str) -> bool:
    """Whether what the loss draws depends on the space; the others know no noised state."""
    loss, batch = LOSSES[name](), tiny.batch(size=B, length=L, vocab_size=V)
    table = jnp.zeros((V, MODEL["width"]))

    def shapes(make_space):
        space = make_space({"student": table})
        return jax.tree.map(jnp.shape, jax.eval_shape(lambda: loss.draw(KEY, batch, space)))

    return shapes(Projected) != shapes(OneHot)


def test_these_are_the_losses_with_a_state_in_a_space():
    assert [name for name in LOSSES if in_space(name)] == list(DRAWS)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in DRAWS])
def test_the_other_losses_compute_the_same_in_both_spaces(name):
    """Instruction by instruction."""
    params = jax.eval_shape(model(name).init, KEY)
    others = jax.eval_shape(LOSSES[name]().first_state, params)
    tokens, mask = jnp.zeros((B, L), jnp.int32), jnp.ones((B, L))
    programs = [
        str(jax.make_jaxpr(make_gradients(name, space))(params, others, tokens, mask, KEY))
        for space in (Projected, OneHot)
    ]
    assert programs[0] == programs[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWS)
def test_mean_gradients_are_those_of_the_one_hot_space(name, trained):
    rows, found = trained
    student = {"flow_matching": "teacher", "residual": "residual"}.get(name, "student")
    params, others = found[student], others_of(name, found)
    means = [block_means(name, s, params, others, rows, DRAWS[name]) for s in (Projected, OneHot)]
    z = {group: scores(*(m[group] for m in means)) for group in means[0]}
    row = (f"{max(map(abs, z[group].values())):.1f}" for group in ("backbone", "head", "table"))
    print(f"| `{name}` | {DRAWS[name]} |", " | ".join(row), "|")  # of docs/performance.md
    assert max(abs(score) for ways in z.values() for score in ways.values()) < LARGEST, z
