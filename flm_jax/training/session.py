"""One session of a run: everything that a config and a workdir say, built, restored and saved."""

import contextlib
import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from flm_jax import config as config_lib
from flm_jax.checkpoint import BucketWorkdir, Checkpoints, checkpoints_of, is_address
from flm_jax.data import Batches, load_data
from flm_jax.errors import UserError
from flm_jax.experiment import Experiment
from flm_jax.flow.at import STUDENT
from flm_jax.host import (
    distributed,
    files,
    hub,
    memory,
    numerics,
    progress,
    runlog,
    sharding,
    wandb_feed,
)
from flm_jax.inference import FlowModel
from flm_jax.inference.heldout import HeldOut
from flm_jax.models import kernels
from flm_jax.training import dtype, optim
from flm_jax.training import step as step_lib
from flm_jax.training import workdir as workdir_lib
from flm_jax.training.sources import first_params, load_sources

PERIODIC_SAMPLES = 4


@dataclasses.dataclass
class Clockwork:
    """Where wall time went, in seconds, over all sessions of the run."""

    train_s: float = 0.0
    data_s: float = 0.0
    compile_s: float = 0.0
    sample_s: float = 0.0

    @property
    def learning_s(self) -> float:
        """What train.max_minutes counts: a slow compiler must not leave a run without steps."""
        return self.train_s - self.compile_s


class NoLog(contextlib.AbstractContextManager):
    """In place of a MetricsLog where another process writes."""

    def write(self, step: int, values: dict) -> None:
        pass

    def truncate_after(self, step: int) -> None:
        pass

    def write_samples(self, step: int, texts: Sequence[str]) -> None:
        pass

    def write_report(self, path: pathlib.Path) -> None:
        pass

    def __exit__(self, *_):
        pass


class Session:
    """One session of a run: everything built, nothing trained yet.

    A subclass may open other checkpoints and batches (`open_checkpoints`, `open_batches`).
    """

    def __init__(
        self,
        config: config_lib.Config,
        workdir: pathlib.Path,
        bucket: BucketWorkdir | None = None,
    ):
        self.config = config
        self.workdir, self.bucket = workdir, bucket
        self.clockwork = Clockwork()
        self.checkpoints = self.open_checkpoints()
        self.config = config = dtype.settled(config, self.say)
        start = time.perf_counter()
        self.data = load_data(config.data, config.tokenizer)
        self.clockwork.data_s = time.perf_counter() - start

        shape = config_lib.validate_devices(config, jax.device_count(), jax.process_count())
        kernels.check(config.model)
        self.mesh = sharding.make_mesh(shape)
        self.experiment = Experiment(config, self.data.tokenizer.vocab_size, self.mesh)
        self.experiment.sampler()  # refused before training if it does not fit the vocabulary
        self._check_prompts()
        self.sources = load_sources(self.experiment, self.data)
        self._check_steps()
        workdir_lib.claim(config, workdir, bucket)
        for model in self.sources.frozen.values():
            where = sharding.shardings(model.params, self.mesh)
            model.params = sharding.place(model.params, where)
            model.experiment = dataclasses.replace(model.experiment, mesh=self.mesh)
        self.frozen = {role: model.params for role, model in self.sources.frozen.items()}
        self.horizon = config.train.steps  # the last step, until a time limit decides it
        self.optimizer = optim.optimizer(config.optim)
        self.batches = self.open_batches()
        self.log = runlog.MetricsLog(workdir) if distributed.is_main() else NoLog()
        self.agreement = distributed.Agreement(self.mesh)
        self.key = numerics.key(config.seed)
        self.state_shape = jax.eval_shape(self._init, self.key)
        self.state_sharding = sharding.shardings(self.state_shape, self.mesh)
        memory.keep_programs(self.state_shape.params)
        self._model: FlowModel | None = None
        self._compile()

    def open_checkpoints(self) -> Checkpoints:
        """The checkpoints of the run; called before data and devices are looked at."""
        push = self.bucket and self.bucket.push
        return Checkpoints(checkpoints_of(self.workdir), *self._keep(), before_commit=push)

    @property
    def place(self) -> str:
        """The workdir as people know it: an address, or a path."""
        return self.bucket.url if self.bucket else str(self.workdir)

    def open_batches(self) -> Batches:
        """This process's part of the training batches, from the first one on."""
        return Batches(
            self.data.rows["train"],
            self.config.train.batch_size,
            self.config.seed,
            shard_index=jax.process_index(),
            shard_count=jax.process_count(),
            num_workers=self.config.data.num_workers,
        )

    def _keep(self) -> tuple[int, int]:
        """How many of the newest and of the best checkpoints are kept."""
        return self.config.train.keep_latest, self.config.train.keep_best

    def _check_prompts(self) -> None:
        """UserError if rows begin with a given part and the loss would learn that, too."""
        if self.prompts and not self.experiment.loss.keeps_prompts:
            raise UserError(
                f"rows of data set {self.data.corpus.name!r} begin with a given part, which the "
                f"loss {self.config.loss.name!r} cannot keep; use flow_matching, any_order, psd, "
                "masked_diffusion or autoregressive"
            )

    def _check_steps(self) -> None:
        """UserError if the run is beyond its last step, before config.json says otherwise."""
        newest, last = self.checkpoints.latest_step() or 0, self.config.train.steps
        if newest > last:
            raise UserError(
                f"train.steps={last}, but {self.place} is at step {newest} already; give "
                f"--config.train.steps={newest} or more, or choose another --workdir"
            )

    def _init(self, key):
        params = self.experiment.model.init(key)
        loss, emas = self.experiment.loss, self.config.optim.more_emas
        return step_lib.init_state(params, self.optimizer, loss, self.horizon, emas)

    def _compile(self) -> None:
        replicated = sharding.replicated(self.mesh)
        loss = self.experiment.loss
        make_nets = self.make_nets = {STUDENT: self.experiment.trained_net}
        make_nets.update((role, model.net) for role, model in self.sources.frozen.items())
        own = [*self.state_shape.loss, *(["ema"] if loss.needs.ema else [])]
        make_nets.update((role, self.experiment.net) for role in own)
        train_step = step_lib.make_train_step(
            make_nets,
            loss,
            self.experiment.space,
            self.experiment.clock,
            self.optimizer,
            ema_decay=self.config.optim.ema_decay,
            accumulation_steps=self.config.optim.accumulation_steps,
            schedule=optim.schedule(self.config.optim),
            skip_limit=self.skip_limit,
            prompts=self.prompts,
            more_emas=self.config.optim.more_emas,
        )
        self.train_step = progress.announced(
            jax.jit(train_step, donate_argnums=0, out_shardings=(self.state_sharding, replicated)),
            "compiling the training step",
        )
        self.held_out = HeldOut(
            self.experiment, self.data.rows["valid"], self.config.train.batch_size,
            make_nets | {STUDENT: self.experiment.net}, self.mesh,
        )  # fmt: skip

    @property
    def skip_limit(self) -> int:
        """Batches in a row with numbers that are not finite that end the run."""
        knobs = self.config.train
        return 1 if knobs.nonfinite == "stop" else knobs.nonfinite_limit

    def restore_or_init(self) -> tuple[int, step_lib.TrainState]:
        """The state to start from: this workdir's newest good checkpoint, init_from, or fresh."""
        return (0, self.initial()) if self.checkpoints.latest_step() is None else self.restore()

    def initial(self) -> step_lib.TrainState:
        """The state before the first step."""
        self.log.truncate_after(-1)  # what a run left that ended before its first checkpoint
        init = progress.announced(
            jax.jit(self._init, out_shardings=self.state_sharding), "initialising the parameters"
        )
        state = init(jax.random.fold_in(self.key, 0))
        return state if self.sources.first is None else self.start_from(state)

    def restore(self, step: int | None = None) -> tuple[int, step_lib.TrainState]:
        """The newest good step, or the given one, and its place in data and log."""
        _, meta = self.checkpoints.restore_meta(step)
        # Before the arrays: another vocabulary does not fit them, and that would be no help.
        if meta["tokenizer"] != self.data.tokenizer.fingerprint:
            raise UserError(
                f"the tokenizer now has fingerprint {self.data.tokenizer.fingerprint[:12]} but "
                f"{self.place} was trained with {meta['tokenizer'][:12]}; "
                "restore its training text, or choose another --workdir"
            )
        abstract = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            self.state_shape,
            self.state_sharding,
        )
        with progress.Waiting("reading the checkpoint"):
            step, items, meta = self.checkpoints.restore(_items(abstract), step)
        self.batches.set_state(meta["data"])
        for name, seconds in meta["timings"].items():
            vars(self.clockwork)[name] += seconds
        self.log.truncate_after(step)
        logging.info("resuming %s at step %d", self.place, step)
        self.say(f"resuming {self.place} at step {step}")
        self.horizon = min(meta.get("horizon", optim.NO_END), self.config.train.steps)
        if self.decay_began() and not self._decay_time():  # there is more time now
            self.horizon = self.config.train.steps
        counts = {"step": step, "skipped": meta.get("skipped", 0), "in_a_row": 0}
        counts["horizon"] = self.horizon
        everywhere = sharding.replicated(self.mesh)
        counts = {name: sharding.place(np.int32(n), everywhere) for name, n in counts.items()}
        emas = {name: items.pop(name) for name in self.state_shape.emas}
        return step, step_lib.TrainState(**counts, **{"loss": {}, **items}, emas=emas)

    def start_from(self, state: step_lib.TrainState) -> step_lib.TrainState:
        """The fresh state with the parameters (the EMA) of the model that the run starts from."""
        first, source = self.sources.first, self.sources.source
        assert first is not None
        params = first_params(first, state.params, self.experiment.loss, source)
        # Copied: the training step gives its arguments away, and a teacher's must stay.
        params = jax.tree.map(jnp.copy, sharding.place(params, self.state_sharding.params))
        self.say(f"starting from the parameters of {source} at step {first.step}")
        kept = sharding.place(self.experiment.loss.first_state(params), self.state_sharding.loss)
        ema, kept = (jax.tree.map(jnp.copy, x) for x in (params, kept))
        emas = {name: jax.tree.map(jnp.copy, params) for name in state.emas}
        return state.replace(params=params, ema=ema, loss=kept, emas=emas)

    def say(self, text: str) -> None:
        if distributed.is_main():
            print(text, flush=True)

    def time_is_up(self) -> bool:
        """Whether train.max_minutes ends the run now; a decay that it began is finished first."""
        minutes = self.config.train.max_minutes
        return minutes > 0 and self.clockwork.learning_s >= 60 * minutes and not self.decay_began()

    def decay_began(self) -> bool:
        """Whether the time limit has decided the last step (`begin_decay`)."""
        return self.horizon < self.config.train.steps

    def decay_is_due(self, step: int) -> bool:
        """Whether a stable schedule must decay now to be done when the time is up."""
        if self.decay_began() or self._last_if_decayed_from(step) >= self.config.train.steps:
            return False
        return self._decay_time()

    def _last_if_decayed_from(self, step: int) -> int:
        return max(step + 1, math.ceil(step / (1.0 - self.config.optim.decay_fraction)))

    def _decay_time(self) -> bool:
        optim_knobs, minutes = self.config.optim, self.config.train.max_minutes
        before = (1.0 - optim_knobs.decay_fraction) * 60 * minutes
        return (
            optim_knobs.schedule == "stable" and minutes > 0 and self.clockwork.learning_s >= before
        )

    def begin_decay(self, state: step_lib.TrainState, step: int) -> step_lib.TrainState:
        """The state whose learning rate decays from now on, and the last step that follows.

        The steps so far took all of the time but its ``decay_fraction``; the rest is as fast.
        """
        self.horizon = self._last_if_decayed_from(step)
        self.say(
            f"the learning rate decays from step {step} to {self.horizon}, the last in "
            f"train.max_minutes={self.config.train.max_minutes:g}"
        )
        everywhere = sharding.replicated(self.mesh)
        return state.replace(horizon=sharding.place(np.int32(self.horizon), everywhere))

    @property
    def prompts(self) -> bool:
        """Whether the rows of the data begin with a given part."""
        return self.data.rows["train"].has_given

    def mask(self) -> jax.Array:
        """(B, L) of ones: every token of the data counts."""
        rows = self.config.train.batch_size // jax.process_count()
        return sharding.global_rows(np.ones((rows, self.config.data.length), np.float32), self.mesh)

    def inputs(self, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Tokens and mask of the next batch: ``mask``, or 0 where rows have a given part."""
        batch = next(self.batches)
        if "given" in batch:
            mask = sharding.global_rows((~batch["given"]).astype(np.float32), self.mesh)
        return sharding.global_rows(batch["tokens"], self.mesh), mask

    def train_key(self) -> jax.Array:
        """The key that every step folds its number into; on all devices, where steps need it."""
        fold = jax.jit(jax.random.fold_in, out_shardings=sharding.replicated(self.mesh))
        return fold(self.key, 1)

    def evaluate(self, state: step_lib.TrainState, step: int) -> float:
        """Held-out loss of the EMA, logged."""
        values = self.held_out(state.ema, {**self.frozen, **state.loss})
        self.log.write(step, values)
        return values["eval/loss"]

    def model(self, state: step_lib.TrainState, step: int) -> FlowModel:
        """The model as it is now, with the EMA's parameters; compiled samplers are kept."""
        if self._model is None:
            self._model = FlowModel(
                self.experiment,
                self.data.tokenizer,
                state.ema,
                step,
                self.mesh,
                self.sources.frozen,
            )
        self._model.params, self._model.step = state.ema, step
        return self._model

    def write_samples(self, state: step_lib.TrainState, step: int) -> None:
        """A few samples at the last step count, in samples/step_N.jsonl and where the log goes."""
        samples = self.model(state, step).generate(num_samples=PERIODIC_SAMPLES, seed=0)
        if not distributed.is_main():
            return
        lines = (json.dumps({"step": step, **row}) for row in samples.rows())
        path = self.workdir / "samples" / f"step_{step:08d}.jsonl"
        path.parent.mkdir(exist_ok=True)
        files.write_atomically(path, "\n".join(lines) + "\n")
        self.log.write_samples(step, samples.texts)

    def follow(self, at_once: bool) -> None:
        """Has Weights & Biases told of everything from now on, if train.wandb names a project.

        ``at_once``: the run appears there now, not with what is logged first.
        """
        project = self.config.train.wandb
        if project and isinstance(self.log, runlog.MetricsLog):
            chosen = config_lib.to_dict(self.config)
            feed = wandb_feed.WandbFeed(self.workdir, project, chosen)
            if at_once:
                feed.begin()
            self.log.follow(feed)

    def save(
        self, state: step_lib.TrainState, step: int, metric: float | None, give_back: int = 0
    ) -> None:
        """Saves in the background; ``give_back`` batches will be read again.

        Raises Lost when another command has taken the workdir over.
        """
        if self.bucket is not None:
            self.bucket.check_held()
        position = self.batches.get_state()
        position["next_row"] -= give_back * self.config.train.batch_size
        meta = {
            "data": position,
            "skipped": int(jax.device_get(state.skipped)),
            "horizon": self.horizon,
            "config": config_lib.to_dict(self.config),
            "tokenizer": self.data.tokenizer.fingerprint,
            "timings": dataclasses.asdict(self.clockwork),
        }
        if teacher := self.config.teacher:  # config.json has it as typed in some folder
            whole = str(pathlib.Path(teacher).expanduser().resolve())
            remote = hub.is_address(teacher) or is_address(teacher)
            meta["teacher"] = teacher if remote else whole
        self.checkpoints.save(step, _items(state), meta, metric)


def _items(state: step_lib.TrainState) -> dict[str, Any]:
    """The arrays of a checkpoint; most losses keep none of their own."""
    items = {"params": state.params, "opt_state": state.opt_state, "ema": state.ema, **state.emas}
    return items | {"loss": state.loss} if state.loss else items
