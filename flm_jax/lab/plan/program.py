"""The training step of a config over shapes only: nothing is computed, no device is asked."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from flm_jax import config as config_lib
from flm_jax.experiment import Experiment
from flm_jax.flow import space as space_lib
from flm_jax.flow.at import STUDENT, TEACHER
from flm_jax.flow.trees import Params
from flm_jax.host import numerics, sharding
from flm_jax.inference import programs as programs_lib
from flm_jax.inference.programs import Programs
from flm_jax.lab.benchmark.measure import abstract, frozen_models, networks
from flm_jax.lab.benchmark.vocabulary import vocabulary_size
from flm_jax.losses import LOSSES
from flm_jax.models.dit import count_parameters
from flm_jax.samplers import SAMPLERS
from flm_jax.samplers.tokens import TokenSampler
from flm_jax.tokenizers.characters import Characters
from flm_jax.training import optim
from flm_jax.training import step as step_lib
from flm_jax.training.cost import Calls


@dataclasses.dataclass(frozen=True)
class Work:
    """What a config's step asks for, independent of the mesh.

    Attributes:
      state, frozen: shapes of the training state, and of the parameters of frozen networks.
      projected, joint_width: the space, and W of the tables that see one state.
      evaluations: of networks per token of the batch, without gradients; counted by tracing.
      off_diagonal: share of the batch whose two times differ; 1 for losses of one time.
      derivatives: of the evaluations those with a forward derivative.
      moves: products p @ T per token, by which a target's answer moves the state.
      bisected: share of the tokens whose target is projected by entmax.
    """

    config: config_lib.Config
    vocab_size: int
    state: step_lib.TrainState
    frozen: dict[str, Params]
    projected: bool
    joint_width: int
    evaluations: float
    off_diagonal: float
    derivatives: float
    moves: float
    bisected: float

    @property
    def parameters(self) -> int:
        return count_parameters(self.state.params)

    @property
    def tokens(self) -> int:
        return self.config.train.batch_size * self.config.data.length


@dataclasses.dataclass(frozen=True)
class Program:
    """A training step with the shapes of its arguments (state, frozen, tokens, mask, key).

    ``mesh``: the devices that share them; None: one device.
    """

    step: Callable[..., tuple[step_lib.TrainState, dict[str, jax.Array]]]
    state: step_lib.TrainState
    frozen: dict[str, Params]
    batch: tuple[int, int]
    calls: Calls  # counts while the step is traced
    mesh: jax.sharding.Mesh | None = None

    def evaluations(self) -> float:
        """Of networks, per token of a batch, that is differentiated or not (no accumulation)."""
        self.calls.tokens = 0
        jax.eval_shape(self.step, *self.arguments)
        return self.calls.tokens / math.prod(self.batch)

    @property
    def arguments(self) -> tuple:
        tokens = jax.ShapeDtypeStruct(self.batch, jnp.int32)
        mask = jax.ShapeDtypeStruct(self.batch, jnp.float32)
        return self.state, self.frozen, tokens, mask, jax.eval_shape(lambda: numerics.key(0))

    def lowered(self) -> jax.stages.Lowered:
        """As training does it: the state is given away and comes back, on the same devices."""
        if self.mesh is None:
            return jax.jit(self.step, donate_argnums=0).lower(*self.arguments)
        state, frozen, tokens, mask, key = self.arguments
        rows, everywhere = sharding.batch_sharding(self.mesh), sharding.replicated(self.mesh)
        kept, others = (sharding.shardings(tree, self.mesh) for tree in (state, frozen))
        where = kept, others, rows, rows, everywhere
        arguments = abstract((state, frozen, tokens, mask, key), where)
        jitted = jax.jit(self.step, donate_argnums=0, out_shardings=(kept, everywhere))
        return jitted.lower(*arguments)


@numerics.pinned()
def of_config(config: config_lib.Config, vocab_size: int = 0) -> Work:
    """The work of a config as it stands; shapes are enough, so no checkpoint need exist.

    ``vocab_size``: 0 = that of the tokenizer. Raises UserError if the config does not fit together.
    """
    size = vocabulary_size(config, vocab_size)
    if config.model.dtype == "auto":  # which it is on the chips that are planned for
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, dtype="bfloat16")
        )
    return work(without_runs(config), size)


def without_runs(config: config_lib.Config) -> config_lib.Config:
    """The same, as if the runs that it starts from were there.

    Raises UserError if the config does not fit together.
    """
    if config.loss.name in LOSSES:
        loss = config_lib.build(LOSSES, config.loss.name, config.loss.options, "loss")
        teacher = "planned" if loss.needs.named_teacher else ""
        masked = "planned" if loss.needs.masked_teacher else ""
        config = dataclasses.replace(config, init_from="", teacher=teacher, masked_teacher=masked)
    config_lib.validate(config, {"loss": LOSSES, "sampler": SAMPLERS})
    return config


def work(config: config_lib.Config, vocab_size: int) -> Work:
    """Shapes and counts of a config's training step."""
    experiment = Experiment(config, vocab_size)
    loss = experiment.loss
    # Counted without micro-batches, which would be traced once for all.
    whole = dataclasses.replace(config.optim, accumulation_steps=1)
    built = build(dataclasses.replace(config, optim=whole), vocab_size)
    tables = 1 + len(built.frozen) + loss.needs.ema - loss.needs.masked_teacher  # it sees tokens
    joint = config.model.width * tables
    chosen = space_lib.choose(config.space, experiment.model.vocab_size, joint)
    forward, off_diagonal = loss.needs.forward_derivatives, loss.off_diagonal_share
    moving = loss.needs.two_times and not loss.needs.residual
    return Work(
        config,
        experiment.model.vocab_size,
        built.state,
        built.frozen,
        chosen is space_lib.Projected,
        joint,
        built.evaluations(),
        off_diagonal,
        derivatives=off_diagonal if forward else 0.0,
        moves=off_diagonal if moving else 0.0,
        bisected=off_diagonal if loss.projects else 0.0,
    )


def build(
    config: config_lib.Config, vocab_size: int, mesh: jax.sharding.Mesh | None = None
) -> Program:
    """The step that `flm_jax.main` would run; teachers have the student's size."""
    experiment = Experiment(config, vocab_size, mesh)
    loss = experiment.loss
    optimizer = optim.optimizer(config.optim)
    key = jax.eval_shape(lambda: numerics.key(0))
    models = frozen_models(experiment)
    calls = Calls()
    step = step_lib.make_train_step(
        networks(experiment, models, calls),
        loss,
        experiment.space,
        experiment.clock,
        optimizer,
        ema_decay=config.optim.ema_decay,
        accumulation_steps=config.optim.accumulation_steps,
        more_emas=config.optim.more_emas,
    )

    def init(key):
        emas = config.optim.more_emas
        params = experiment.model.init(key)
        return step_lib.init_state(params, optimizer, loss, more_emas=emas)

    frozen = {role: jax.eval_shape(other.model.init, key) for role, other in models.items()}
    shape = config.train.batch_size, config.data.length
    return Program(step, jax.eval_shape(init, key), frozen, shape, calls, mesh)


def sampler(
    config: config_lib.Config, vocab_size: int, mesh: jax.sharding.Mesh, steps: int
) -> tuple[jax.stages.Lowered, int]:
    """The program by which `flm_jax.load(...).generate` writes a batch of texts on a mesh.

    The batch is ``sampler.batch_size``; networks beside the student have its size. Returns the
    number of steps, too: a sampler that takes one number only takes that.
    """
    experiment = Experiment(config, vocab_size, mesh)
    rule = experiment.sampler()
    steps = rule.steps_for(config.data.length) or steps
    models = {STUDENT: experiment}
    if rule.needs.teacher:
        models[TEACHER] = frozen_models(experiment)[TEACHER]
    key = jax.eval_shape(lambda: numerics.key(0))
    shapes = {role: jax.eval_shape(made.model.init, key) for role, made in models.items()}
    everywhere = sharding.replicated(mesh)

    def constant(params: dict[str, Params]) -> jax.Array | None:
        tables = {role: own["embed"]["table"] for role, own in params.items()}
        return experiment.space(tables).constant()

    constant_shape = None
    if not isinstance(rule, TokenSampler):
        made = jax.eval_shape(constant, shapes)
        constant_shape = abstract(made, jax.tree.map(lambda _: everywhere, made))
    sampling = config.sampler.sampling(steps)
    programs = Programs(models, Characters("a"), mesh)  # of which only BOS is asked
    batch = programs.whole_batch(config.sampler.batch_size)
    lowered = programs.lowered(
        programs_lib.Program(rule, sampling, batch, config.data.length, trajectory=False),
        {role: abstract(own, sharding.shardings(own, mesh)) for role, own in shapes.items()},
        constant_shape,
        abstract(key, everywhere),
    )
    return lowered, steps
