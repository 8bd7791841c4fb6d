"""The backbone: official sizes and initialisation, its symmetries, knobs that change nothing."""

import jax
import jax.numpy as jnp
import jaxprs
import numpy as np
import pytest
import tiny

from flm_jax import config as config_lib
from flm_jax.configs import common
from flm_jax.errors import UserError
from flm_jax.models import attention, dit
from flm_jax.models.layers import TimeEmbedding

B, L, D, V = tiny.B, tiny.L, tiny.D, tiny.V
TAU = jnp.linspace(0.1, 0.9, B)


def hidden(seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (B, L, D))


def count(preset: str, vocab_size: int, **changes) -> int:
    model = dit.build(config_lib.ModelConfig(**common.PRESETS[preset], **changes), vocab_size)
    return dit.count_parameters(jax.eval_shape(model.init, jax.random.key(0)))


@pytest.mark.parametrize(
    "vocab_size, changes, expected",
    [
        (30522, {}, 139_292_986),
        (50258, {}, 169_627_218),
        (30522, {"two_times": True}, 139_292_986 + 49_408),
        (50258, {"loss_weighting": True}, 169_627_218 + 66_049),
        (50258, {"two_times": True, "loss_weighting": True}, 169_627_218 + 49_408 + 66_049),
    ],
)
def test_parameter_counts_are_the_official_ones(vocab_size, changes, expected):
    assert count("small", vocab_size, **changes) == expected


@pytest.mark.parametrize("preset", common.PRESETS)
def test_every_preset_builds(preset):
    c = common.PRESETS[preset]
    width, depth, cond, vocab_size = c["width"], c["depth"], c["cond_dim"], 100
    block = 12 * width**2 + 5 * width + 2 * width + 6 * width * (cond + 1)
    final = width + 2 * width * (cond + 1)
    times = 256 * cond + cond + cond**2 + cond
    ends = vocab_size * (2 * width + 1)
    assert count(preset, vocab_size) == depth * block + final + times + ends


def paths(tree) -> dict[str, jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(k.key for k in path): leaf for path, leaf in leaves}


def test_initialisation_is_the_official_one():
    """Uniform in +-1/sqrt(fan_in), the table in +-1/sqrt(D), modulations and head zero."""
    model = tiny.model(width=16, cond_dim=32, two_times=True, loss_weighting=True, depth=3)
    params = paths(jax.jit(model.init)(jax.random.key(0)))
    for path, leaf in params.items():
        if "modulation" in path or path.startswith(("head", "loss_weight/out")):
            assert not leaf.any(), path
        elif path.endswith("scale"):
            assert (leaf == 1).all(), path
        else:
            kernel = params[path.replace("bias", "kernel")]
            fan_in = 16 if path == "embed/table" else kernel.shape[-2]
            bound = fan_in**-0.5
            assert 0.8 * bound < np.abs(leaf).max() <= bound, path
            if leaf.size > 500:
                assert np.std(leaf) == pytest.approx(bound / 3**0.5, rel=0.1), path
    kernels = params["blocks/qkv/kernel"]
    assert kernels.shape == (3, 16, 48) and (kernels[0] != kernels[1]).all()
    assert all(leaf.dtype == jnp.float32 for leaf in params.values())


def test_logits_are_exactly_zero_at_the_start_and_blocks_the_identity():
    model = tiny.model(loss_weighting=True)
    params = jax.jit(model.init)(jax.random.key(0))
    h = hidden()
    output = model.net(params)(h, TAU)
    np.testing.assert_array_equal(output.posterior.dense(), np.float32(1 / V))
    np.testing.assert_array_equal(output.log_weight, 0.0)
    nll = -output.posterior.log_prob(tiny.batch().tokens_BL)
    np.testing.assert_allclose(nll, np.log(V), rtol=1e-6)
    normal = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(output.posterior.features_BLD, normal, rtol=1e-4, atol=1e-5)


def test_a_head_that_starts_as_the_table_reads_off_the_nearest_token():
    model = tiny.model(head_init="table")
    params = jax.jit(model.init)(jax.random.key(0))
    np.testing.assert_array_equal(params["head"]["kernel"], params["embed"]["table"].T)
    assert not params["head"]["bias"].any()
    assert params["head"]["kernel"].shape == (D, V)


def test_time_embedding_is_cosines_then_sines_of_small_angles():
    embed = TimeEmbedding(4)
    params = embed.init(jax.random.key(0), TAU)["params"]
    angle = np.asarray(TAU)[:, None] * 10_000.0 ** (-np.arange(128) / 128)
    waves = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    u = waves @ params["in"]["kernel"] + params["in"]["bias"][None]
    expected = u / (1 + np.exp(-u)) @ params["out"]["kernel"] + params["out"]["bias"][None]
    np.testing.assert_allclose(embed.apply({"params": params}, TAU), expected, atol=1e-5)
    assert angle.max() <= 1.0


def test_rotary_scores_depend_on_the_difference_of_positions():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    tables = attention.rotary_tables(12, 8, jnp.float32)
    q_at, k_at = (attention.rotate(jnp.broadcast_to(x, (1, 12, 1, 8)), *tables)[0, :, 0]
                  for x in (q, k))  # fmt: skip
    scores = np.asarray(q_at @ k_at.T)
    for offset in range(-11, 12):
        diagonal = np.diagonal(scores, offset)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5)
    assert np.ptp(scores[0]) > 0.1
    np.testing.assert_allclose(jnp.linalg.norm(q_at, axis=-1), jnp.linalg.norm(q), rtol=1e-5)
    np.testing.assert_allclose(q_at[0], q[0, 0, 0], rtol=1e-6)
    # Position 1 turns the pair (a_0, b_0) = dimensions (0, 4) by one radian.
    a, b = np.asarray(q[0, 0, 0, [0, 4]])
    turned = [a * np.cos(1) - b * np.sin(1), a * np.sin(1) + b * np.cos(1)]
    np.testing.assert_allclose(q_at[1, [0, 4]], turned, rtol=1e-5)


def test_only_learned_positions_tell_equal_tokens_apart():
    same_BLD = jnp.broadcast_to(hidden()[:, :1], (B, L, D))
    for places, apart in ((0, 0.0), (L + 2, 0.1)):
        model = tiny.model(learned_positions=places)
        params = tiny.params(model)
        features_BLD, _ = model.backbone(params, same_BLD, TAU)
        spread = np.ptp(features_BLD, axis=1).max(-1)
        assert (spread > apart).all() if places else spread.max() < 1e-5
    added_BLD = same_BLD + params["positions"][None, :L]
    without = {name: tree for name, tree in params.items() if name != "positions"}
    expected_BLD, _ = tiny.model().backbone(without, added_BLD, TAU)
    np.testing.assert_allclose(features_BLD, expected_BLD, atol=1e-5)


def test_learned_positions_are_zero_at_first_and_bound_the_length():
    model = tiny.model(learned_positions=L - 1)
    params = model.init(jax.random.key(0))
    assert params["positions"].shape == (L - 1, D) and not np.any(params["positions"])
    with pytest.raises(UserError, match=f"{L} tokens is longer than model.learned_positions=5"):
        model.backbone(params, hidden(), TAU)


@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_attention_is_the_softmax_of_capped_scores(cap):
    q, k, v = 3 * jax.random.normal(jax.random.key(1), (3, B, L, 2, 4))
    scores = np.einsum("blhk,bmhk->bhlm", q, k) / 2.0
    if cap:
        scores = cap * np.tanh(scores / cap)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = np.einsum("bhlm,bmhk->blhk", weights, v)
    np.testing.assert_allclose(attention.attend(q, k, v, cap), expected, rtol=1e-4, atol=1e-5)


def outputs(params, h, tau_s=TAU, tau_t=None, key=None, **changes):
    net = tiny.model(**changes).net(params)

    @jax.jit
    def call(params, h, tau_s, tau_t):
        features, log_weight = net.backbone(params, h, tau_s, tau_t, key)
        return features, log_weight, net.head.capped(net.head.raw(features))

    return call(params, h, tau_s, tau_t)


def test_soft_caps_can_be_off():
    params = tiny.params(tiny.model(), scale=1.5)
    capped, free = (outputs(params, hidden(), logit_cap=cap)[2] for cap in (30.0, 0.0))
    assert np.abs(free).max() > 30 >= np.abs(capped).max()
    np.testing.assert_allclose(capped, 30 * np.tanh(free / 30), rtol=1e-4, atol=1e-4)
    uncapped = outputs(params, hidden(), attention_cap=0.0)[0]
    assert np.abs(uncapped - outputs(params, hidden(), attention_cap=1.0)[0]).max() > 1e-2


def test_times_per_position_equal_times_per_sequence_when_constant():
    settings = dict(two_times=True, loss_weighting=True)
    params = tiny.params(tiny.model(**settings))
    tau_t = TAU + 0.05
    spread = [jnp.broadcast_to(tau[:, None], (B, L)) for tau in (TAU, tau_t)]
    by_sequence = outputs(params, hidden(), TAU, tau_t, **settings)
    by_position = outputs(params, hidden(), *spread, **settings)
    np.testing.assert_allclose(by_position[0], by_sequence[0], rtol=1e-4, atol=1e-5)
    assert by_position[1].shape == (B, L) and by_sequence[1].shape == (B,)
    np.testing.assert_allclose(by_position[1][:, 3], by_sequence[1], rtol=1e-4, atol=1e-6)
    changed = spread[0].at[0, 2].set(0.95)
    moved = outputs(params, hidden(), changed, spread[1], **settings)
    difference = np.abs(moved[0] - by_position[0]).max(-1)
    assert difference[0].min() > 1e-6 and not difference[1:].any()
    assert ((moved[1] != by_position[1]) == (changed != spread[0])).all()


def test_a_network_of_two_times_has_an_embedder_for_each():
    params = tiny.params(tiny.model(two_times=True))
    a, b = TAU, TAU + 0.05
    there, back = outputs(params, hidden(), a, b, two_times=True)[0], None
    back = outputs(params, hidden(), b, a, two_times=True)[0]
    assert np.abs(there - back).max() > 1e-3
    params["time_embed_to"]["out"] = jax.tree.map(jnp.zeros_like, params["time_embed_to"]["out"])
    one = {name: tree for name, tree in params.items() if name != "time_embed_to"}
    np.testing.assert_allclose(
        outputs(params, hidden(), a, b, two_times=True)[0], outputs(one, hidden(), a)[0], atol=1e-5
    )
    # One embedder used twice is symmetric in the two times.
    np.testing.assert_allclose(
        outputs(one, hidden(), a, b)[0], outputs(one, hidden(), b, a)[0], atol=1e-5
    )


def test_the_loss_weight_knows_the_first_time_only():
    settings = dict(two_times=True, loss_weighting=True)
    params = tiny.params(tiny.model(**settings))
    weights = [
        outputs(params, hidden(seed), TAU, tau_t, **settings)[1]
        for seed, tau_t in [(0, TAU), (1, jnp.ones(B))]
    ]
    np.testing.assert_array_equal(*weights)
    assert np.ptp(weights[0]) > 1e-4


@pytest.mark.parametrize(
    "changes", [{"remat": "full"}, {"remat": "products"}, {"scan_unroll": 2}, {"head_chunk": 4}]
)
def test_knobs_of_memory_and_speed_change_no_number(changes):
    params, tokens = tiny.params(tiny.model()), tiny.batch().tokens_BL

    def loss(params, **settings):
        posterior = tiny.model(**settings).net(params)(hidden(), TAU).posterior
        return -jnp.mean(posterior.log_prob(tokens))

    base = dict(remat="none", scan_unroll=1, head_chunk=100)
    wanted, wanted_gradient = jax.jit(jax.value_and_grad(lambda p: loss(p, **base)))(params)
    value, gradient = jax.jit(jax.value_and_grad(lambda p: loss(p, **base | changes)))(params)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    for mine, reference in zip(*map(jax.tree.leaves, (gradient, wanted_gradient)), strict=True):
        np.testing.assert_allclose(mine, reference, rtol=1e-3, atol=1e-6)


def test_a_bfloat16_stream_is_kept_in_half_the_bytes_and_close():
    """Between blocks and for their backward pass; features and parameters stay float32."""
    params, tokens, depth = (
        tiny.params(tiny.model()),
        tiny.batch().tokens_BL,
        tiny.model().module.depth,
    )

    def loss(params, dtype):
        posterior = (
            tiny.model(stream_dtype=dtype, remat="full", dropout=0.0)
            .net(params)(hidden(), TAU)
            .posterior
        )
        assert posterior.features_BLD.dtype == jnp.float32
        return -jnp.mean(posterior.log_prob(tokens))

    def kept(dtype):
        """Types of what the scan over the blocks keeps of the stream."""
        jaxpr = jax.make_jaxpr(jax.grad(lambda p: loss(p, dtype)))(params).jaxpr
        scans = [e for e in jaxprs.equations(jaxpr) if e.primitive.name == "scan"]
        results = [v.aval for e in scans for v in e.outvars]
        return {aval.dtype for aval in results if aval.shape == (depth, B, L, D)}

    for dtype in ("float32", "bfloat16"):
        assert kept(dtype) == {jnp.dtype(dtype)}
    wanted, wanted_gradient = jax.jit(jax.value_and_grad(lambda p: loss(p, "float32")))(params)
    value, gradient = jax.jit(jax.value_and_grad(lambda p: loss(p, "bfloat16")))(params)
    assert 0 < abs(value / wanted - 1) < 2**-9
    for mine, reference in zip(*map(jax.tree.leaves, (gradient, wanted_gradient)), strict=True):
        assert mine.dtype == jnp.float32
        error = jnp.linalg.norm((mine - reference).ravel())
        assert error < 2**-5 * jnp.linalg.norm(reference.ravel()) + 1e-6


def test_dropout_is_on_if_and_only_if_there_is_a_key():
    params = tiny.params(tiny.model())
    plain = outputs(params, hidden())[0]
    with_rate = outputs(params, hidden(), dropout=0.5)[0]
    np.testing.assert_allclose(with_rate, plain, rtol=1e-6)
    first, second = (outputs(params, hidden(), key=jax.random.key(i), dropout=0.5)[0]
                     for i in (1, 2))  # fmt: skip
    assert np.abs(first - plain).max() > 1e-2 < np.abs(first - second).max()
    without_rate = outputs(params, hidden(), key=jax.random.key(1), dropout=0.0)[0]
    np.testing.assert_allclose(without_rate, plain, rtol=1e-6)


@pytest.mark.parametrize("remat", ["none", "products", "full"])
def test_forward_mode_runs_through_the_backbone(remat):
    """jvp in h and both times against a central difference, float64."""
    with jax.enable_x64(True):
        model = tiny.model(two_times=True, remat=remat)
        params = jax.tree.map(lambda x: x.astype(jnp.float64), tiny.params(model))
        point = tuple(x.astype(jnp.float64) for x in (hidden(), TAU, TAU + 0.05))
        direction = tuple(jnp.cos(7.0 * x) for x in point)

        @jax.jit
        def both(point, direction):
            def features(h, tau_s, tau_t):
                return model.backbone(params, h, tau_s, tau_t)[0]

            ends = [
                features(*[x + sign * 1e-5 * d for x, d in zip(point, direction, strict=True)])
                for sign in (1, -1)
            ]
            return jax.jvp(features, point, direction)[1], (ends[0] - ends[1]) / 2e-5

        exact, numeric = both(point, direction)
        assert exact.dtype == jnp.float64
        np.testing.assert_allclose(exact, numeric, rtol=1e-5, atol=1e-7)


def test_bfloat16_products_keep_residual_and_logits_in_float32():
    params = tiny.params(tiny.model(loss_weighting=True))
    settings = dict(loss_weighting=True)
    half = outputs(params, hidden(), dtype="bfloat16", **settings)
    full = outputs(params, hidden(), **settings)
    assert {x.dtype for x in half} == {jnp.dtype(jnp.float32)}
    assert 0 < np.abs(half[0] - full[0]).max() < 0.2
    np.testing.assert_array_equal(half[1], full[1])  # times and their MLP stay float32
    jaxpr = str(
        jax.make_jaxpr(lambda p, h: tiny.model(dtype="bfloat16").backbone(p, h, TAU)[0])(
            {k: v for k, v in params.items() if k != "loss_weight"}, hidden()
        )
    )
    assert "bf16" in jaxpr
    assert f"f32[{B},{L},{D}]" in jaxpr


def test_self_conditioning_starts_as_the_network_without_and_hears_no_zeros():
    plain, told = tiny.model(), tiny.model(self_conditioning=True)
    fresh = told.init(jax.random.key(0))
    kernel = fresh.pop("estimate")["kernel"]
    assert kernel.shape == (D, D) and not kernel.any()
    jax.tree.map(np.testing.assert_array_equal, fresh, plain.init(jax.random.key(0)))
    params = tiny.params(told)
    h_BLD, estimate_BLD = jax.random.normal(jax.random.key(1), (2, B, L, D))
    tau_B = jnp.linspace(0.1, 0.9, B)

    @jax.jit
    def ask(params, *told_BLD):
        return told.net(params)(h_BLD, tau_B, None, None, None, *told_BLD).posterior.features_BLD

    silent = ask(params)
    np.testing.assert_allclose(ask(params, jnp.zeros_like(h_BLD)), silent, atol=1e-6)
    assert np.abs(ask(params, estimate_BLD) - silent).max() > 1e-3
    zero = params | {"estimate": {"kernel": kernel}}
    np.testing.assert_allclose(ask(zero, estimate_BLD), silent, atol=1e-6)
    with pytest.raises(ValueError, match="without self-conditioning was told an estimate"):
        plain.net(params)(h_BLD, tau_B, estimate_BLD=estimate_BLD)
    with pytest.raises(UserError, match="set model.self_conditioning=False"):
        tiny.model(causal=True, self_conditioning=True)
