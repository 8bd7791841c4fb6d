"""Networks that the official one is not: norms, gated MLP, norms of queries and keys, tied head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from config_changes import changed, sentence

from flm_jax import config as config_lib
from flm_jax import experiment
from flm_jax.flow.net import Net
from flm_jax.models import dit
from flm_jax.models.layers import Norm

B, L, D, V = tiny.B, tiny.L, tiny.D, tiny.V
TAU = jnp.linspace(0.1, 0.9, B)
H_BLD = jax.random.normal(jax.random.key(0), (B, L, D))
VARIANTS = [{"norm": "rms"}, {"mlp": "swiglu"}, {"qk_norm": True}, {"tied_head": True}]
ALL = {name: value for variant in VARIANTS for name, value in variant.items()}


def dense(net: Net, h_BLD=H_BLD) -> jax.Array:
    return jax.jit(lambda params, h: net(h, TAU).posterior.dense())(net.params, h_BLD)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_another_network_that_starts_like_the_official_one(variant):
    """Blocks are the identity at first; drawn parameters make another function of the same ones."""
    model = tiny.model(**variant)
    fresh = jax.jit(model.init)(jax.random.key(0))
    features_BLD, _ = model.backbone(fresh, H_BLD, TAU)
    centred = H_BLD if "norm" in variant else H_BLD - H_BLD.mean(-1, keepdims=True)
    scale = jnp.sqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(features_BLD, centred / scale, rtol=1e-4, atol=1e-5)
    params = tiny.params(model)
    common = tiny.params(tiny.model())
    common["blocks"] |= {k: v for k, v in params["blocks"].items() if k in common["blocks"]}
    if variant != {"mlp": "swiglu"}:  # whose matrices have other shapes
        common = jax.tree.map(lambda x: x, common)
        mine = dense(model.net(_with(params, common)))
        assert np.abs(mine - dense(tiny.model().net(common))).max() > 1e-3


def _with(params, common):
    """``params`` with every part that ``common`` has too."""
    if not isinstance(params, dict):
        return common
    return {k: _with(v, common[k]) if k in common else v for k, v in params.items()}


def test_rms_norm_divides_by_the_root_mean_square():
    x, scale = H_BLD + 3.0, jnp.linspace(0.5, 2.0, D)
    found = Norm(rms=True).apply({"params": {"scale": scale}}, x)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True)) * scale[None, None]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_gated_mlp_is_written_out_and_has_as_many_parameters():
    for width, ratio in ((768, 4), (128, 4), (64, 2)):
        inner = dit.mlp_width("swiglu", ratio, width)
        assert inner % 8 == 0 and abs(3 * inner - 2 * ratio * width) <= 12
    model = tiny.model(mlp="swiglu", depth=1, two_times=False)
    params = tiny.params(model)
    blocks = params["blocks"]
    blocks["attention_out"]["kernel"] = jnp.zeros_like(blocks["attention_out"]["kernel"])
    gates = jnp.tile(jnp.repeat(jnp.asarray([0.0, 0.0, 1.0]), D), 2)  # no shifts, no scales
    kernel = jnp.zeros_like(blocks["modulation"]["kernel"])
    blocks["modulation"] = {"kernel": kernel, "bias": gates[None]}
    final = params["final"]
    final["modulation"] = jax.tree.map(jnp.zeros_like, final["modulation"])
    features_BLD, _ = model.backbone(params, H_BLD, TAU)

    def norm(x, scale):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale[None, None]

    own = jax.tree.map(lambda x: x[0], blocks)
    u = norm(H_BLD, own["norm_mlp"]["scale"])
    gate, value = (
        u @ own[n]["kernel"] + own[n]["bias"][None, None] for n in ("mlp_gate", "mlp_in")
    )
    hidden = gate / (1 + np.exp(-gate)) * value
    out = hidden @ own["mlp_out"]["kernel"] + own["mlp_out"]["bias"][None, None]
    expected = norm(H_BLD + out, final["norm"]["scale"])
    np.testing.assert_allclose(features_BLD, expected, rtol=1e-3, atol=1e-4)


def test_scores_of_normed_queries_and_keys_do_not_hang_on_their_size():
    """Without the norm ten times the kernel of queries and keys is another network."""
    for qk_norm, same in ((True, True), (False, False)):
        model = tiny.model(qk_norm=qk_norm)
        params = tiny.params(model, scale=1.0)
        kernel = params["blocks"]["qkv"]["kernel"]
        factor = jnp.concatenate([jnp.full(2 * D, 10.0), jnp.ones(D)])
        scaled = {"kernel": kernel * factor[None, None]}
        larger = {**params, "blocks": params["blocks"] | {"qkv": scaled}}
        close = np.allclose(dense(model.net(params)), dense(model.net(larger)), atol=1e-4)
        assert close == same


def test_a_causal_network_normalises_before_it_remembers():
    """One position at a time, with its cache, gives what the whole sequence gives."""
    model = tiny.model(causal=True, cond_dim=4, **ALL)
    net = model.net(tiny.params(model))
    whole = net(H_BLD, None).posterior.dense()
    cache = net.empty_cache(B, L)
    for position in range(L):
        posterior, cache = net.advance(
            H_BLD[:, position : position + 1], jnp.asarray(position), cache
        )
        np.testing.assert_allclose(
            posterior.dense()[:, 0], whole[:, position], rtol=1e-3, atol=1e-5
        )


def test_a_tied_head_is_the_table_and_both_gradients_meet_in_it():
    model, plain = tiny.model(tied_head=True), tiny.model()
    params = tiny.params(model)
    assert set(params["head"]) == {"bias"}
    assert dit.count_parameters(params) == dit.count_parameters(tiny.params(plain)) - D * V
    own = {**params, "head": params["head"] | {"kernel": params["embed"]["table"].T}}
    np.testing.assert_array_equal(dense(model.net(params)), dense(plain.net(own)))
    tokens = tiny.batch().tokens_BL

    @jax.jit
    def both(params, own):
        def loss(params, model):
            net = model.net(params)
            return -jnp.mean(net(H_BLD + net.table[tokens], TAU).posterior.log_prob(tokens))

        return jax.grad(loss)(params, model), jax.grad(loss)(own, plain)

    mine, apart = both(params, own)
    expected = apart["embed"]["table"] + apart["head"]["kernel"].T
    np.testing.assert_allclose(mine["embed"]["table"], expected, rtol=1e-4, atol=1e-6)
    assert all(np.abs(part).max() > 1e-3 for part in (apart["head"]["kernel"], expected))
    few = model.net(params).with_outputs(np.array([3, 1]))
    wanted = plain.net(own).with_outputs(np.array([3, 1]))
    np.testing.assert_array_equal(few.head.kernel_DV, wanted.head.kernel_DV)
    assert few.head.kernel_DV.shape == (D, 2)


def test_forward_derivatives_go_through_all_of_them():
    with jax.enable_x64(True):
        model = tiny.model(two_times=True, **ALL)
        params = jax.tree.map(lambda x: x.astype(jnp.float64), tiny.params(model))
        point = tuple(x.astype(jnp.float64) for x in (H_BLD, TAU, TAU + 0.05))
        along = tuple(jnp.cos(7.0 * x) for x in point)

        @jax.jit
        def both(point, along):
            def features(*inputs):
                return model.backbone(params, *inputs)[0]

            ahead, behind = (
                features(*[x + step * d for x, d in zip(point, along, strict=True)])
                for step in (1e-5, -1e-5)
            )
            return jax.jvp(features, point, along)[1], (ahead - behind) / 2e-5

        np.testing.assert_allclose(*both(point, along), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "loss, model, said",
    [
        ("masked_diffusion", {"mask_token": True, "input_scale": 0.5},
         "model.input_scale=0.5 scales noised text, which the network of loss 'masked_diffusion'"),
        ("autoregressive", {"causal": True, "input_scale": 1.0}, "set model.input_scale=0"),
        ("residual", {"two_times": True, "tied_head": True},
         "loss 'residual' starts with an output layer of zeros, which no embedding table is"),
    ],
)  # fmt: skip
def test_options_that_a_loss_cannot_have_are_refused(loss, model, said):
    tables = {"loss": experiment.tables()["loss"]}
    config = changed(loss__name=loss, **{f"model__{name}": v for name, v in model.items()})
    assert said in sentence(config_lib.validate, config, tables)
    allowed = changed(loss__name="flow_matching", model__input_scale=0.5, model__tied_head=True)
    config_lib.validate(allowed, tables)
