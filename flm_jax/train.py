"""The one training loop: build, restore or init, step, log, evaluate, sample, save, report.

A workdir belongs to one config. Training resumes there by itself, bit for bit: parameters,
optimizer, average and the position in the data come from the newest good checkpoint, and all
randomness derives from seed and step.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from flm_jax import config as config_lib
from flm_jax import distributed, files, metrics, optim, outcome, sharding, signals
from flm_jax import step as step_lib
from flm_jax.checkpoint import Checkpoints
from flm_jax.data import Batches, load_data
from flm_jax.errors import UserError
from flm_jax.experiment import Experiment
from flm_jax.heldout import HeldOut
from flm_jax.inference import CHECKPOINTS_FOLDER, TOKENIZER_FOLDER, FlowModel, read_config
from flm_jax.sources import first_params, load_sources

_TIME_IS_UP = 1  # what a process may want at a step; larger: the number of a signal


@dataclasses.dataclass
class Clockwork:
    """Where wall time went, in seconds, over all sessions of the run."""

    train_s: float = 0.0
    data_s: float = 0.0
    compile_s: float = 0.0
    sample_s: float = 0.0


def train(config: config_lib.Config, workdir: pathlib.Path) -> int:
    """Trains, or resumes, to ``config.train.steps`` and writes samples, results and the report.

    Expects a config that `config.validate` has passed. Returns the exit code: 0 when the run is
    complete or its time is up, 128 + signal number when it was asked to stop.

    Raises UserError for what the user can mend, a non-finite loss included.
    """
    if not distributed.is_main():
        metrics.silence()
    check_workdir(config, workdir)
    run = Run(config, workdir)
    with run.checkpoints, run.log, outcome.locked(workdir):
        return run.go()


def check_workdir(config: config_lib.Config, workdir: pathlib.Path) -> None:
    """Refuses a workdir that holds a checkpoint of another config.

    Without a checkpoint there is nothing to protect: a run that failed early, for example because
    of a wrong path, may be mended in the same workdir.
    """
    if Checkpoints(workdir / CHECKPOINTS_FOLDER).latest_step() is None:
        return
    stored = read_config(workdir)
    differences = config_lib.differences(stored, config)
    if config.optim.schedule != "constant" and stored.train.steps != config.train.steps:
        # The learning rate of every step hangs on the last one.
        differences.append(f"train.steps: {stored.train.steps} -> {config.train.steps}")
    if differences:
        listed = "\n".join(differences)
        raise UserError(
            f"{workdir} belongs to a run with another config; "
            f"choose another --workdir, or undo:\n{listed}"
        )


def claim_workdir(config: config_lib.Config, workdir: pathlib.Path) -> None:
    """Makes the workdir and writes its config; all processes must find what process 0 wrote."""
    if distributed.is_main():
        _write_config(config, workdir)
    distributed.meet("workdir")
    if distributed.is_main():
        return
    try:
        same = (workdir / "config.json").read_text() == config_lib.to_json(config)
    except OSError:
        same = False
    if not same:
        raise UserError(
            f"--workdir={workdir} is not the folder that process 0 has made; give a folder on "
            "storage that all machines share, and the same command everywhere"
        )


def _write_config(config: config_lib.Config, workdir: pathlib.Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_atomically(workdir / "config.json", config_lib.to_json(config))
    except OSError as error:
        raise UserError(
            f"cannot write to --workdir={workdir}: {error.strerror}; choose another folder"
        ) from error


class NoLog(contextlib.AbstractContextManager):
    """In place of a MetricsLog where another process writes."""

    def write(self, step: int, values: dict) -> None:
        pass

    def truncate_after(self, step: int) -> None:
        pass

    def __exit__(self, *_):
        pass


class Run:
    """One session of a run: everything built, nothing trained yet."""

    def __init__(self, config: config_lib.Config, workdir: pathlib.Path):
        self.config = config
        self.workdir = workdir
        self.clockwork = Clockwork()
        start = time.perf_counter()
        self.data = load_data(dataclasses.asdict(config.data), dataclasses.asdict(config.tokenizer))
        self.clockwork.data_s = time.perf_counter() - start

        shape = config_lib.validate_devices(config, jax.device_count(), jax.process_count())
        self.mesh = sharding.make_mesh(shape)
        self.experiment = Experiment(
            config, self.data.tokenizer.vocab_size, sharding.batch_devices(self.mesh)
        )
        self.sources = load_sources(self.experiment, self.data)
        claim_workdir(config, workdir)
        for model in self.sources.frozen.values():
            where = sharding.shardings(model.params, self.mesh)
            model.params = sharding.place(model.params, where)
        self.frozen = {role: model.params for role, model in self.sources.frozen.items()}
        self.schedule = optim.schedule(config.optim, config.train.steps)
        self.optimizer = optim.optimizer(config.optim, config.train.steps)
        self.batches = Batches(
            self.data.rows["train"],
            config.train.batch_size,
            config.seed,
            shard_index=jax.process_index(),
            shard_count=jax.process_count(),
            num_workers=config.data.num_workers,
        )
        self.checkpoints = Checkpoints(
            workdir / CHECKPOINTS_FOLDER, config.train.keep_latest, config.train.keep_best
        )
        self.log = metrics.MetricsLog(workdir) if distributed.is_main() else NoLog()
        self.agreement = distributed.Agreement(self.mesh)
        self.key = jax.random.key(config.seed)
        self.state_shape = jax.eval_shape(self._init, self.key)
        self.state_sharding = sharding.shardings(self.state_shape, self.mesh)
        self._model: FlowModel | None = None
        self._compile()

    def _init(self, key):
        return step_lib.init_state(self.experiment.model.init(key), self.optimizer)

    def _compile(self) -> None:
        replicated = sharding.replicated(self.mesh)
        loss = self.experiment.loss
        make_nets = {step_lib.STUDENT: self.experiment.net}
        make_nets |= {role: model.net for role, model in self.sources.frozen.items()}
        if getattr(loss, "needs_ema", False):
            make_nets["ema"] = self.experiment.net
        train_step = step_lib.make_train_step(
            make_nets,
            loss,
            self.experiment.space,
            self.experiment.clock,
            self.optimizer,
            ema_decay=self.config.optim.ema_decay,
            accumulation_steps=self.config.optim.accumulation_steps,
            schedule=self.schedule,
        )
        self.train_step = metrics.announced(
            jax.jit(train_step, donate_argnums=0, out_shardings=(self.state_sharding, replicated)),
            "compiling the training step",
        )
        self.held_out = HeldOut(
            self.experiment, self.data.rows["valid"], self.config.train.batch_size, make_nets,
            self.mesh,
        )  # fmt: skip

    def go(self) -> int:
        step, state = self.restore_or_init()
        if distributed.is_main():
            self.data.tokenizer.save(self.workdir / TOKENIZER_FOLDER)
        if step < self.config.train.steps and not self.time_is_up():
            outcome.write_run(self, step, "running")
        try:
            with signals.StopRequest() as stop:
                step, state, why = self.loop(step, state, stop)
        except UserError:
            outcome.write_run(self, self.checkpoints.latest_step() or 0, "failed")
            raise
        if stop.signal is not None:
            outcome.write_run(self, step, why)
            self.say(f"stopped by {stop.name} at step {step}, saved; the same command continues")
            return 128 + stop.signal
        outcome.finish(self, state, step, why)
        return 0

    def restore_or_init(self) -> tuple[int, step_lib.TrainState]:
        """The state to start from: this workdir's newest good checkpoint, init_from, or fresh."""
        if self.checkpoints.latest_step() is None:
            self.log.truncate_after(-1)  # what a run left that ended before its first checkpoint
            init = metrics.announced(
                jax.jit(self._init, out_shardings=self.state_sharding),
                "initialising the parameters",
            )
            state = init(jax.random.fold_in(self.key, 0))
            return 0, self.start_from(state) if self.config.init_from else state
        _, meta = self.checkpoints.restore_meta()
        # Before the arrays: another vocabulary does not fit them, and that would be no help.
        if meta["tokenizer"] != self.data.tokenizer.fingerprint:
            raise UserError(
                f"the tokenizer now has fingerprint {self.data.tokenizer.fingerprint[:12]} but "
                f"{self.workdir} was trained with {meta['tokenizer'][:12]}; "
                "restore its training text, or choose another --workdir"
            )
        abstract = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            self.state_shape,
            self.state_sharding,
        )
        with metrics.Waiting("reading the checkpoint"):
            step, items, meta = self.checkpoints.restore(
                {"params": abstract.params, "opt_state": abstract.opt_state, "ema": abstract.ema}
            )
        self.batches.set_state(meta["data"])
        for name, seconds in meta["timings"].items():
            setattr(self.clockwork, name, getattr(self.clockwork, name) + seconds)
        self.log.truncate_after(step)
        logging.info("resuming %s at step %d", self.workdir, step)
        self.say(f"resuming {self.workdir} at step {step}")
        count = sharding.place(np.int32(step), sharding.replicated(self.mesh))
        return step, step_lib.TrainState(step=count, **items)

    def start_from(self, state: step_lib.TrainState) -> step_lib.TrainState:
        """The fresh state with the parameters (the average) of config.init_from."""
        first = self.sources.first
        source = self.config.init_from
        params = first_params(first, state.params, self.experiment.loss, source)
        # Copied: the training step gives its arguments away, and a teacher's must stay.
        params = jax.tree.map(jnp.copy, sharding.place(params, self.state_sharding.params))
        self.say(f"starting from the parameters of {source} at step {first.step}")
        return state.replace(params=params, ema=jax.tree.map(jnp.copy, params))

    def say(self, text: str) -> None:
        if distributed.is_main():
            print(text, flush=True)

    def wish(self, step: int, stop: signals.StopRequest) -> int:
        """Why this process would end before this step; 0 if it would not."""
        if stop.signal is not None:
            return stop.signal
        if distributed.preempted(step):
            return signal.SIGTERM
        return _TIME_IS_UP if self.time_is_up() else 0

    def time_is_up(self) -> bool:
        minutes = self.config.train.max_minutes
        return minutes > 0 and self.clockwork.train_s >= 60 * minutes

    def loop(self, step, state, stop) -> tuple[int, step_lib.TrainState, str]:
        """Steps until the end, the time limit or a signal; returns (step, state, why)."""
        knobs = self.config.train
        progress = metrics.Progress(knobs.steps, step)
        mask = sharding.global_rows(
            np.ones((knobs.batch_size // jax.process_count(), self.config.data.length), np.float32),
            self.mesh,
        )
        train_key = jax.random.fold_in(self.key, 1)
        saved, why, pending, metric = step, "complete", None, None
        window = metrics.Window(knobs.batch_size * self.config.data.length)
        compiling = True
        try:
            while step < knobs.steps:
                start = time.perf_counter()
                if wish := self.agreement(self.wish(step, stop)):
                    why = "time limit" if wish == _TIME_IS_UP else "signal"
                    stop.signal = None if wish == _TIME_IS_UP else wish
                    break
                tokens = sharding.global_rows(next(self.batches)["tokens"], self.mesh)
                state, values = self.train_step(state, self.frozen, tokens, mask, train_key)
                step += 1
                if pending is not None:  # one step late: the device is never waited for
                    self.note(*pending, window, progress)
                pending = (step, values)
                due = [every and step % every == 0 for every in
                       (knobs.eval_every, knobs.sample_every, knobs.save_every)]  # fmt: skip
                if any(due) or step == knobs.steps:
                    self.note(*pending, window, progress)
                    pending = None
                seconds = time.perf_counter() - start
                self.clockwork.train_s += seconds
                if compiling:
                    self.clockwork.compile_s += seconds
                    compiling = False
                else:
                    window.add_time(seconds)
                # A checkpoint can be the best one only if its held-out loss is known.
                rated = due[0] or (due[2] and knobs.keep_best and knobs.eval_every)
                metric = self.evaluate(state, step) if rated or step == knobs.steps else None
                if due[1]:
                    self.write_samples(state, step)
                if due[2]:
                    self.save(state, step, metric)
                    saved = step
            if pending is not None:
                self.note(*pending, window, progress)
            if step > saved:
                self.save(state, step, metric)
        finally:
            progress.close()
            self.batches.close()
        with metrics.Waiting("writing the checkpoint"):
            self.checkpoints.wait()
        return step, state, why

    def note(
        self, step: int, values: dict, window: metrics.Window, progress: metrics.Progress
    ) -> None:
        """Checks one step's metrics (waiting for them), logs the window's means when due."""
        values = {name: float(value) for name, value in jax.device_get(values).items()}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(values[name]):
                self.checkpoints.wait()
                older = self.checkpoints.latest_step()
                kept = "there is no checkpoint yet" if older is None else f"step {older} is saved"
                raise UserError(
                    f"{name} is {values[name]} at step {step}; {kept}; "
                    f"try a lower learning rate than {self.config.optim.learning_rate:g} or a "
                    "longer warm-up"
                )
        window.add(values)
        speed = window.tokens_per_second()
        progress.update(step, values["loss"], speed)
        if step % self.config.train.log_every == 0 or step == self.config.train.steps:
            speeds = {} if speed is None else {"tokens_per_second": speed}
            self.log.write(step, window.means() | speeds)
            window.restart()

    def evaluate(self, state: step_lib.TrainState, step: int) -> float:
        """Held-out loss of the average, logged."""
        values = self.held_out(state.ema, self.frozen)
        self.log.write(step, values)
        return values["eval/loss"]

    def model(self, state: step_lib.TrainState, step: int) -> FlowModel:
        """The model as it is now, with the averaged parameters; compiled samplers are kept."""
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
        """A few samples at the last step count, in samples/step_N.jsonl."""
        samples = self.model(state, step).generate(num_samples=outcome.PERIODIC_SAMPLES, seed=0)
        if not distributed.is_main():
            return
        lines = (json.dumps({"step": step, **row}) for row in samples.rows())
        path = self.workdir / "samples" / f"step_{step:08d}.jsonl"
        path.parent.mkdir(exist_ok=True)
        files.write_atomically(path, "\n".join(lines) + "\n")

    def save(self, state: step_lib.TrainState, step: int, metric: float | None) -> None:
        items = {"params": state.params, "opt_state": state.opt_state, "ema": state.ema}
        meta = {
            "data": self.batches.get_state(),
            "config": config_lib.to_dict(self.config),
            "tokenizer": self.data.tokenizer.fingerprint,
            "timings": dataclasses.asdict(self.clockwork),
        }
        self.checkpoints.save(step, items, meta, metric)
