"""Meshes and partitions: where arrays lie must not change what is computed.

Noise is equal bit for bit on any mesh. Losses are equal to 2e-5 (relative) and parameters to 3e-5
(absolute) after three updates of about 1e-2 each, because float32 sums run in another order.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from flm_jax import config as config_lib
from flm_jax.experiment import Experiment
from flm_jax.flow import input_scale as scale
from flm_jax.flow.space import Projected
from flm_jax.host import sharding
from flm_jax.inference import FlowModel
from flm_jax.lab.plan import hlo
from flm_jax.losses import LOSSES
from flm_jax.losses.base import Batch
from flm_jax.losses.flow_matching import FlowMatching
from flm_jax.tokenizers.characters import Characters
from flm_jax.training import optim
from flm_jax.training import step as step_lib

MESHES = [
    *(
        pytest.param(x, marks=pytest.mark.slow)
        for x in [(2, 1, 1), (4, 1, 1), (8, 1, 1), (1, 2, 1), (1, 1, 2)]
    ),
    (2, 2, 2),
]
BATCH = tiny.batch(size=8)
KEY = jax.random.key(2)
LOSS = FlowMatching(given_fraction=0.25)
CLOCK = tiny.clock()


def mesh_of(shape) -> jax.sharding.Mesh:
    return sharding.make_mesh(shape, jax.devices()[: int(np.prod(shape))])


@pytest.mark.parametrize(
    "path, shape, expected",
    [
        ("params/embed/table", (1024, 256), P("tensor", "fsdp")),
        ("ema/embed/table", (1024, 256), P("tensor", "fsdp")),
        ("opt_state/1/0/mu/embed/table", (1024, 256), P("tensor", "fsdp")),
        ("params/embed/table", (1023, 256), P(None, "fsdp")),
        ("params/embed/table", (1024, 255), P("tensor", None)),
        ("params/head/kernel", (256, 1024), P("fsdp", "tensor")),
        ("params/head/kernel", (256, 1023), P("fsdp", None)),
        ("params/head/bias", (1024,), P("tensor")),
        ("params/head/bias", (1023,), P(None)),
        ("params/blocks/qkv/kernel", (12, 256, 768), P(None, None, "fsdp")),
        ("params/blocks/qkv/kernel", (12, 256, 767), P(None, "fsdp")),
        ("params/blocks/qkv/kernel", (12, 255, 767), P("fsdp")),
        ("params/blocks/qkv/kernel", (13, 255, 767), P()),
        ("params/blocks/norm_mlp/scale", (12, 256), P()),
        ("params/time_embed/in/kernel", (256, 255), P()),
        ("step", (), P()),
    ],
)
def test_partition_rules(path, shape, expected):
    """fsdp 4, tensor 2: vocabulary by tensor, the largest divisible dimension by fsdp."""
    assert sharding.partition(path, shape, mesh_of((1, 4, 2)).shape) == expected


def test_an_axis_may_take_a_part_of_a_physical_one(monkeypatch):
    """Where JAX's own mesh would not, as tensor=2 of 4 x 4 x 4 chips."""

    def refuses(*arguments, **options):
        raise NotImplementedError("Failed to find assignment")

    wanted = mesh_of((2, 2, 2)), mesh_of((1, 2, 1))
    monkeypatch.setattr(jax, "make_mesh", refuses)
    assert (mesh_of((2, 2, 2)), mesh_of((1, 2, 1))) == wanted


def test_without_fsdp_nothing_is_cut_by_it():
    mesh = mesh_of((8, 1, 1))
    assert sharding.partition("params/blocks/qkv/kernel", (12, 256, 768), mesh.shape) == P()
    placed = jax.device_put(
        jnp.zeros((16, 8)),
        jax.sharding.NamedSharding(mesh, sharding.partition("embed/table", (16, 8), mesh.shape)),
    )
    assert placed.sharding.is_fully_replicated


@functools.cache
def model(mesh=None, **variant):
    gather = sharding.gather(mesh)
    return tiny.model(gather=gather, dropout=0.1, self_conditioning=True, **variant)


VARIANT = dict(norm="rms", mlp="swiglu", qk_norm=True, tied_head=True)
FEWER_GIVEN = FlowMatching(given="uniform", given_none=0.25, tau_spread=1.0)
MORE_EMAS = config_lib.OptimConfig(ema_decays=(0.1,)).more_emas


def trained(mesh, make_model=model, loss=LOSS, input_scale=0.0, emas=MORE_EMAS):
    """(state, losses, shardings) after three steps of AdamW with dropout."""
    optimizer = optim.optimizer(config_lib.OptimConfig(learning_rate=1e-2, warmup_steps=1))

    def net(params):
        made = make_model(mesh).net(params, devices=1 if mesh is None else 8)
        return scale.scaled(made, CLOCK.to_t, input_scale) if input_scale else made

    step = step_lib.make_train_step(
        {"student": net}, loss, Projected, CLOCK, optimizer, ema_decay=0.9, more_emas=emas
    )
    state = step_lib.init_state(tiny.params(make_model()), optimizer, loss, more_emas=emas)
    tokens_BL, mask_BL, where = np.asarray(BATCH.tokens_BL), np.asarray(BATCH.mask_BL), None
    if mesh is not None:
        where = sharding.shardings(state, mesh)
        state = jax.device_put(state, where)
        tokens_BL, mask_BL = (sharding.global_rows(x, mesh) for x in (tokens_BL, mask_BL))
        step = jax.jit(step, out_shardings=(where, sharding.replicated(mesh)))
    losses = []
    for _ in range(3):
        state, metrics = (step if mesh else jax.jit(step))(state, {}, tokens_BL, mask_BL, KEY)
        losses.append(float(metrics["loss"]))
    return state, losses, where


@pytest.fixture(scope="module")
def on_one_device():
    return trained(None)


@pytest.mark.parametrize("shape", MESHES)
def test_training_is_the_same_on_every_mesh(shape, on_one_device, monkeypatch):
    monkeypatch.setattr(sharding, "SMALL", 1)  # so that fsdp cuts even these tiny arrays
    state, losses, where = trained(mesh_of(shape))
    wanted, wanted_losses, _ = on_one_device
    np.testing.assert_allclose(losses, wanted_losses, rtol=2e-5)
    assert len(set(losses)) == 3
    for mine, reference in zip(*map(jax.tree.leaves, (state.ema, wanted.ema)), strict=True):
        np.testing.assert_allclose(mine, reference, atol=3e-5)
    placed = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, where)
    assert all(jax.tree.leaves(placed))
    specs = [x.sharding.spec for x in jax.tree.leaves(state.params)]
    moments = [x.sharding.spec for x in jax.tree.leaves(state.opt_state[1][0].mu)]
    averages = [x.sharding.spec for x in jax.tree.leaves(state.ema)]
    assert specs == moments == averages
    _, fsdp, tensor = shape
    for path, divided in [("embed/table", (tensor, fsdp)), ("head/kernel", (fsdp, tensor))]:
        part, name = path.split("/")
        array = state.params[part][name]
        shard = array.addressable_shards[0].data.shape
        assert shard == tuple(n // d for n, d in zip(array.shape, divided, strict=True))
    qkv = state.params["blocks"]["qkv"]["kernel"]
    assert qkv.addressable_shards[0].data.size == qkv.size // fsdp


def test_options_of_network_and_loss_are_the_same_on_every_mesh(monkeypatch):
    monkeypatch.setattr(sharding, "SMALL", 1)
    everything = functools.partial(model, **VARIANT), FEWER_GIVEN, 1.0
    state, losses, where = trained(mesh_of((2, 2, 2)), *everything)
    wanted, wanted_losses, _ = trained(None, *everything)
    np.testing.assert_allclose(losses, wanted_losses, rtol=2e-5)
    assert len(set(losses)) == 3
    every, reference = ((x.params, x.ema, x.emas) for x in (state, wanted))
    for mine, other in zip(*map(jax.tree.leaves, (every, reference)), strict=True):
        np.testing.assert_allclose(mine, other, atol=3e-5)
    placed = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, where)
    assert all(jax.tree.leaves(placed)) and set(state.emas) == {"ema_0.1"}
    assert not state.params["blocks"]["mlp_gate"]["kernel"].sharding.is_fully_replicated


@pytest.mark.parametrize("shape", MESHES)
def test_noise_is_the_same_bit_for_bit_on_every_mesh(shape):
    mesh = mesh_of(shape)
    rows, table = sharding.batch_sharding(mesh), tiny.params(model())["embed"]["table"]

    @jax.jit
    def draw(tokens_BL, mask_BL, index_B):
        batch = Batch(tokens_BL, mask_BL, index_B, 8)
        return LOSS.draw(KEY, batch, Projected({"student": table}))

    here = draw(BATCH.tokens_BL, BATCH.mask_BL, BATCH.index_B)
    there = draw(
        *(jax.device_put(x, rows) for x in (BATCH.tokens_BL, BATCH.mask_BL, BATCH.index_B))
    )
    for name, value in here.items():
        if name != "dropout":
            np.testing.assert_array_equal(there[name], value, err_msg=name)
    assert len(there["noise"].sharding.device_set) == np.prod(shape)


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
def test_generation_is_the_same_on_every_mesh(shape, tmp_path):
    """Same noise; same tokens wherever the two best logits are further apart than 1e-3."""
    tokenizer = Characters("abcdefghijkl")
    config = tiny.run_config(tmp_path, sampler__steps=(4,))
    experiment = Experiment(config, tokenizer.vocab_size)
    params = tiny.params(experiment.model)
    mesh = mesh_of(shape)
    placed = jax.device_put(params, sharding.shardings(params, mesh))
    options = dict(num_samples=6, steps=4, seed=3, length=8, trajectory=True)
    one = FlowModel(experiment, tokenizer, params).generate(**options)
    many = FlowModel(experiment, tokenizer, placed, mesh=mesh).generate(**options)
    # The start is noise times the factor of the table; the noise itself is compared above.
    np.testing.assert_allclose(many.trajectory.states[0][:6], one.trajectory.states[0], rtol=1e-5)
    np.testing.assert_allclose(many.trajectory.states[3][:6], one.trajectory.states[3], atol=1e-4)
    net, space = experiment.net(params), experiment.space({"student": params["embed"]["table"]})
    h_BLD = space.view(one.trajectory.states[3], "student")
    posterior = net(h_BLD, jnp.full((6,), 0.75)).posterior
    top = np.sort(net.head.capped(net.head.raw(posterior.features_BLD)), axis=-1)
    clear = top[..., -1] - top[..., -2] > 1e-3
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(many.tokens[clear], one.tokens[clear])
    assert many.tokens.shape == (6, 8) and len(many.texts) == 6


def test_nothing_as_large_as_the_vocabulary_is_sent_between_its_parts():
    """tensor=8: table, head, logits and the Gram matrix's sum stay where their rows are."""
    vocab = 512
    big, batch = tiny.model(vocab), tiny.batch(size=2, vocab_size=vocab)
    mesh = mesh_of((1, 1, 8))
    optimizer = optim.optimizer(config_lib.OptimConfig(warmup_steps=1))
    step = step_lib.make_train_step(
        {"student": big.net}, LOSS, Projected, tiny.clock(), optimizer, ema_decay=0.9
    )
    shapes = jax.eval_shape(lambda: step_lib.init_state(tiny.params(big), optimizer, LOSS))
    where = sharding.shardings(shapes, mesh)
    state = jax.tree.map(
        lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), shapes, where
    )
    tokens_BL, mask_BL = (sharding.global_rows(np.asarray(x), mesh)
                          for x in (batch.tokens_BL, batch.mask_BL))  # fmt: skip
    step = jax.jit(step, out_shardings=(where, sharding.replicated(mesh)))
    program = step.lower(state, {}, tokens_BL, mask_BL, KEY).compile().as_text()
    kinds = "all-gather|all-reduce|all-to-all|collective-permute"
    sent = re.findall(rf"= (.*) (?:{kinds})(?:-start)?\(", program)
    assert sent and not [shape for shape in sent if re.search(rf"\b{vocab}\b", shape)]


def test_fsdp_sends_parameters_and_nothing_of_the_batch(monkeypatch):
    """data=2, fsdp=4: rows of the batch stay where they are, in the blocks and in the head."""
    monkeypatch.setattr(sharding, "SMALL", 1)
    length, mesh = 11, mesh_of((2, 4, 1))  # no parameter has a dimension of 11, and none of 13
    mine = tiny.model(13, gather=sharding.gather(mesh), remat="full", head_chunk=1)
    optimizer = optim.optimizer(config_lib.OptimConfig(warmup_steps=1))
    step = step_lib.make_train_step(
        {"student": lambda p: mine.net(p, devices=8)},
        LOSS, Projected, CLOCK, optimizer, ema_decay=0.9,
    )  # fmt: skip
    shapes = jax.eval_shape(lambda: step_lib.init_state(tiny.params(mine), optimizer, LOSS))
    where = sharding.shardings(shapes, mesh)
    state = jax.tree.map(
        lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), shapes, where
    )
    batch = tiny.batch(size=16, length=length, vocab_size=13)
    rows = [sharding.global_rows(np.asarray(x), mesh) for x in (batch.tokens_BL, batch.mask_BL)]
    step = jax.jit(step, out_shardings=(where, sharding.replicated(mesh)))
    program = hlo.Program(step.lower(state, {}, *rows, KEY).compile().as_text())
    kinds = {one.kind for one in program.collectives}
    assert "all-gather" in kinds
    states = [one for one in program.collectives if length in one.array.shape[:-1]]
    assert not states
    logits = [one for one in program.collectives if 13 in one.array.shape]
    table = [(13, tiny.D), (tiny.D, 13), (13,)]
    assert logits and all(one.array.shape in table for one in logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["psd", "lsd"])
def test_gathered_parameters_have_all_derivatives(name, monkeypatch):
    """Gradients of losses that ask several networks, or forward derivatives of one."""
    monkeypatch.setattr(sharding, "SMALL", 1)
    loss, found = LOSSES[name](), []
    for mesh in (None, mesh_of((2, 4, 1))):
        mine = tiny.model(gather=sharding.gather(mesh), two_times=True, head_chunk=8)
        denoiser = tiny.model(gather=sharding.gather(mesh), head_chunk=8)
        params, teacher = tiny.params(mine), tiny.params(denoiser, seed=1)
        rows = BATCH.tokens_BL, BATCH.mask_BL
        if mesh is not None:
            put = jax.device_put
            params, teacher = (put(x, sharding.shardings(x, mesh)) for x in (params, teacher))
            rows = tuple(sharding.global_rows(np.asarray(x), mesh) for x in rows)
        makers = {"student": mine.net, "teacher": denoiser.net, "ema": mine.net}
        gradients = step_lib.make_gradients(makers, loss, Projected, CLOCK)
        others = {"teacher": teacher} | ({"ema": params} if loss.needs.ema else {})
        found.append(jax.jit(gradients)(params, others, *rows, KEY))
    (wanted, wanted_metrics), (mine, metrics) = found
    np.testing.assert_allclose(metrics["loss"], wanted_metrics["loss"], rtol=2e-5)
    for one, reference in zip(*map(jax.tree.leaves, (mine, wanted)), strict=True):
        scale = max(float(np.abs(reference).max()), 1e-6)
        np.testing.assert_allclose(one, reference, atol=1e-4 * scale)


def test_rows_become_the_global_batch():
    mesh = mesh_of((4, 2, 1))
    rows = np.arange(24, dtype=np.int32).reshape(8, 3)
    placed = sharding.global_rows(rows, mesh)
    np.testing.assert_array_equal(placed, rows)
    assert placed.sharding.spec == P(("data", "fsdp"))
    assert {shard.data.shape for shard in placed.addressable_shards} == {(1, 3)}
    assert sharding.batch_devices(mesh) == 8
    assert sharding.batch_devices(mesh_of((2, 2, 2))) == 4
