"""One space measured in this process: the very train step and sampling loop that users run."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from flm_jax import config as config_lib
from flm_jax.experiment import Experiment
from flm_jax.flow.at import MASKED_TEACHER, STUDENT, TEACHER, At
from flm_jax.flow.net import Net
from flm_jax.flow.randomness import sequence_keys
from flm_jax.flow.trees import Params, Tree
from flm_jax.host import memory, numerics, sharding, windows
from flm_jax.samplers.loops import LoopSampler
from flm_jax.sampling import Sampling
from flm_jax.training import cost, dtype, optim
from flm_jax.training import step as step_lib
from flm_jax.training.cost import Calls

RATE_SECONDS = 0.2  # per shape, after every repeat


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to measure: a config whose space and head are settled, and how often."""

    mode: str  # train or sample
    config: config_lib.Config
    vocab_size: int
    sampling_steps: int
    repeats: int


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A compiled step or batch of texts: ``run`` does it once and waits for it."""

    experiment: Experiment
    calls: Calls
    run: Callable[[], None]
    compiled: jax.stages.Compiled


@numerics.pinned()
def prepare(plan: Plan) -> Prepared:
    """What the plan measures, compiled, with random parameters and tokens."""
    windows.refuse("the benchmark")
    memory.keep_small()  # as training does
    numerics.check_devices()
    config = dtype.settled(plan.config, logging.info)
    plan = dataclasses.replace(plan, config=config)
    shape = config_lib.validate_devices(config, jax.device_count(), jax.process_count())
    mesh = sharding.make_mesh(shape)
    experiment = Experiment(config, plan.vocab_size, mesh)
    memory.keep_programs(jax.eval_shape(experiment.model.init, numerics.key(0)))
    calls = Calls(fused_head=config.space != "onehot")
    build = {"train": _training, "sample": _sampling}[plan.mode]
    run, compiled = build(plan, experiment, mesh, calls)
    memory.trim()  # in training the state is there before the step is compiled
    return Prepared(experiment, calls, run, compiled)


@numerics.pinned()
def measure(plan: Plan) -> dict[str, Any]:
    """Numbers of one space, all JSON: see docs/performance.md for their meaning."""
    start = time.perf_counter()
    prepared = prepare(plan)
    experiment, run = prepared.experiment, prepared.run
    config = experiment.config
    run()  # warms up
    compile_s = time.perf_counter() - start
    model, tokens = config.model, config.train.batch_size * config.data.length
    rate = cost.MatrixRate(
        tokens, model.width, model.mlp_ratio * model.width, plan.vocab_size, model.dtype,
        experiment.model.chunk, RATE_SECONDS,
    )  # fmt: skip
    seconds, peak_memory = [], 0
    for _ in range(plan.repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
        peak_memory = _peak_memory()
        rate.sample()
        memory.trim()  # what sampling the rate leaves behind
    return _numbers(plan, experiment, prepared.calls, seconds, compile_s, peak_memory, rate.median)


def _numbers(
    plan: Plan,
    experiment: Experiment,
    calls: Calls,
    seconds: list[float],
    compile_s: float,
    peak_memory: int,
    measured_rate: float,
) -> dict[str, Any]:
    config, model = experiment.config, experiment.config.model
    tokens = config.train.batch_size * config.data.length
    per_token = cost.evaluation_flops(model, plan.vocab_size, config.data.length)
    evaluated = calls.tokens
    if plan.mode == "train":
        evaluated += 2 * tokens  # one network is differentiated, which costs two more passes
    else:  # by formula: a trace sees the loop's body once, even where it never runs
        needs = experiment.sampler().needs
        places = config.train.batch_size if needs.causal else tokens  # of one step
        evaluated = (1 + needs.teacher) * places * plan.sampling_steps
    flops = sum(per_token.values()) * evaluated
    median = statistics.median(seconds)
    device = jax.devices()[0].device_kind
    rate = cost.known_peak(device, model.dtype)
    where = (rate or measured_rate) * jax.device_count()
    return {
        "tokens_per_second": tokens / median,
        "ms_per_step": 1e3 * median,
        "ms_spread": 1e3 * (max(seconds) - min(seconds)),
        "repeats": plan.repeats,
        "peak_memory_bytes": peak_memory,
        "model_flops": flops,
        "flops_share": {k: v / sum(per_token.values()) for k, v in per_token.items()},
        "matrix_rate": measured_rate,
        "peak_rate": rate,
        "utilisation": flops / median / where,
        "compile_s": compile_s,
        "device": device,
        "devices": jax.device_count(),
        "space": config.space,
        "head_chunk": experiment.model.chunk,
        "dtype": model.dtype,
        "batch": config.train.batch_size,
        "length": config.data.length,
        "vocab": plan.vocab_size,
    }


def _training(
    plan: Plan, experiment: Experiment, mesh: jax.sharding.Mesh, calls: Calls
) -> tuple[Callable[[], None], jax.stages.Compiled]:
    """One training step from random parameters and tokens, teachers at random, too."""
    config, loss = plan.config, experiment.loss
    optimizer = optim.optimizer(config.optim)
    key = numerics.key(config.seed)
    models = frozen_models(experiment)

    def init(key):
        emas = config.optim.more_emas
        params = experiment.model.init(key)
        return step_lib.init_state(params, optimizer, loss, more_emas=emas)

    shapes = jax.eval_shape(init, key)
    where = sharding.shardings(shapes, mesh)
    train_step = jax.jit(
        step_lib.make_train_step(
            networks(experiment, models, calls), loss,
            experiment.space, experiment.clock, optimizer,
            ema_decay=config.optim.ema_decay,
            accumulation_steps=config.optim.accumulation_steps,
            more_emas=config.optim.more_emas,
        ),
        donate_argnums=0,
        out_shardings=(where, sharding.replicated(mesh)),
    )  # fmt: skip
    # Compiled before the state is there: what compiling needs does not add to it.
    shape, rows = (config.train.batch_size, config.data.length), sharding.batch_sharding(mesh)
    state_shapes = abstract(shapes, where)
    frozen_shapes, frozen = {}, {}
    for role, other in models.items():
        own = jax.eval_shape(other.model.init, key)
        frozen_shapes[role] = abstract(own, sharding.shardings(own, mesh))
    compiled = train_step.lower(
        state_shapes, frozen_shapes,
        jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows),
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=rows),
        key,
    ).compile()  # fmt: skip
    state = jax.jit(init, out_shardings=where)(key)
    for role, other in models.items():
        own = jax.tree.map(lambda leaf: leaf.sharding, frozen_shapes[role])
        frozen[role] = jax.jit(other.model.init, out_shardings=own)(key)
    tokens_BL = jax.device_put(jax.random.randint(key, shape, 0, plan.vocab_size), rows)
    mask_BL = jax.device_put(jnp.ones(shape, jnp.float32), rows)

    def run():
        nonlocal state
        state, metrics = compiled(state, frozen, tokens_BL, mask_BL, key)
        metrics["loss"].block_until_ready()

    return run, compiled


def abstract(shapes: Tree, where: Tree) -> Tree:
    """Shapes with their shardings, to compile for."""
    return jax.tree.map(
        lambda leaf, there: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there),
        shapes, where,
    )  # fmt: skip


def frozen_models(experiment: Experiment) -> dict[str, Experiment]:
    """The frozen networks that the loss needs, by role; a teacher of the student's size."""
    loss = experiment.loss
    found = {}
    if loss.needs.teacher:
        told = loss.needs.teacher_self_conditioning
        found[TEACHER] = _denoiser(experiment, self_conditioning=told)
    if loss.needs.masked_teacher:
        found[MASKED_TEACHER] = _denoiser(experiment, mask_token=True)
    if loss.needs.residual:
        found["residual"] = experiment
    return found


def _denoiser(
    experiment: Experiment, mask_token: bool = False, self_conditioning: bool = False
) -> Experiment:
    """A teacher of the student's size; with ``mask_token`` a masked diffusion model."""
    config = experiment.config
    one_time = dataclasses.replace(
        config.model,
        two_times=False,
        loss_weighting=False,
        mask_token=mask_token,
        self_conditioning=self_conditioning,
    )
    return dataclasses.replace(experiment, config=dataclasses.replace(config, model=one_time))


def networks(
    experiment: Experiment, frozen: dict[str, Experiment], calls: Calls
) -> dict[str, Callable[..., Net]]:
    """The student, the frozen networks, those that the loss keeps, the EMA where the loss asks it.

    All counted.
    """
    loss = experiment.loss
    makers = {STUDENT: experiment.trained_net}
    kept = jax.eval_shape(lambda key: loss.first_state(experiment.model.init(key)), numerics.key(0))
    makers |= dict.fromkeys(kept, experiment.net)
    makers |= {role: other.net for role, other in frozen.items()}
    if loss.needs.ema:
        makers["ema"] = experiment.net
    return {role: calls.counting(make) for role, make in makers.items()}


def _sampling(
    plan: Plan, experiment: Experiment, mesh: jax.sharding.Mesh, calls: Calls
) -> tuple[Callable[[], None], jax.stages.Compiled]:
    """One batch of texts from random parameters, those of a correction's denoiser, too."""
    config = plan.config
    rule = experiment.sampler()
    key = numerics.key(config.seed)
    models = {STUDENT: experiment} | (
        {TEACHER: _denoiser(experiment)} if rule.needs.teacher else {}
    )
    makers: dict[str, Callable[[Params], Net]] = {
        STUDENT: experiment.net if rule.needs.two_times else experiment.denoiser
    }
    makers |= {role: other.net for role, other in models.items() if role != STUDENT}
    params = {}
    for role, made in models.items():
        where = sharding.shardings(jax.eval_shape(made.model.init, key), mesh)
        params[role] = jax.jit(made.model.init, out_shardings=where)(key)
    rows = sharding.batch_sharding(mesh)

    def space(params):
        return experiment.space({role: own["embed"]["table"] for role, own in params.items()})

    def texts(params, constant, key):
        nets = {role: calls.counting(make)(params[role]) for role, make in makers.items()}
        index_B = jax.lax.with_sharding_constraint(jnp.arange(config.train.batch_size), rows)
        at = At(nets, space(params).with_constant(constant), experiment.clock)
        sampling, length = Sampling(steps=plan.sampling_steps), config.data.length
        return rule.run(at, sequence_keys(key, index_B), sampling, length, bos_id=0).tokens_BL

    constant = None
    if isinstance(rule, LoopSampler):  # made once per network, as in `inference.programs`
        constant = jax.jit(lambda params: space(params).constant())(params)
    compiled = jax.jit(texts).lower(params, constant, key).compile()
    return lambda: compiled(params, constant, key).block_until_ready(), compiled


def _peak_memory() -> int:
    """Bytes: of the fullest device where it keeps count, else of this process."""
    counts = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.devices()]
    if all(counts):
        return max(counts)
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
