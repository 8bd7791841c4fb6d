"""The one training loop: step, log, evaluate, sample, save; stop when asked or when it must.

A workdir belongs to one config. Training resumes there by itself, bit for bit: parameters,
optimizer, EMA and the position in the data come from the newest good checkpoint, and all
randomness derives from seed and step. What the loop works on is in `flm_jax.training.session`.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable

import jax
import numpy as np
from absl import logging

from flm_jax import config as config_lib
from flm_jax.errors import TryAgain, UserError
from flm_jax.host import distributed, memory, numerics, progress, runlog, windows
from flm_jax.host.command import pasteable
from flm_jax.inference import TOKENIZER_FOLDER
from flm_jax.training import estimate, incidents, results, summary
from flm_jax.training import workdir as workdir_lib
from flm_jax.training.meter import Meter
from flm_jax.training.profile import Profile
from flm_jax.training.session import Session
from flm_jax.training.step import TrainState
from flm_jax.training.stop import StopRequest

Inputs = tuple[jax.Array, jax.Array]  # tokens and mask of a batch
Finish = Callable[[Session, TrainState, int, str], None]  # of (session, state, step, why)

# What a process may want at a step; larger: _TIME_IS_UP + the number of a signal.
_DECAY, _TIME_IS_UP = 1, 2
_PARTING_S = 5.0


@numerics.pinned()
def train(
    config: config_lib.Config, workdir: str | os.PathLike, finish: Finish | None = None
) -> int:
    """Trains, or resumes, to ``config.train.steps`` and writes samples, results and the report.

    Expects a config that `config.validate` has passed. Returns the exit code: 0 when the run is
    complete or its time is up, 128 + signal number when it was asked to stop.

    Args:
      workdir: a folder, or gs:// or s3://BUCKET/FOLDER.
      finish: what is done with the trained model; None: samples, results and the report.

    Raises UserError for what the user can mend, a non-finite loss included, and TryAgain for other
    exceptions in the loop, when what was good is saved. run.json says how the session ended.
    """
    windows.refuse("training")
    with workdir_lib.opened(workdir) as (folder, bucket), results.end_recorded(folder):
        # Before devices are touched.
        config = workdir_lib.check(config, folder, bucket.url if bucket else "")
        memory.keep_small()
        numerics.check_devices()
        if not distributed.is_main():
            progress.silence()
        return go(Session(config, folder, bucket), finish)


def go(session: Session, finish: Finish | None = None) -> int:
    """Runs a session to its end; returns the exit code of `train`. The workdir is locked.

    Args:
      finish: what is done with a trained model; None: `summary.finish`.
    """
    compiled = workdir_lib.compiled_programs(
        session.config.train.compilation_cache, session.workdir
    )
    with compiled, session.log, session.checkpoints:
        distributed.before_end(lambda: leave(session))
        step, state = session.restore_or_init()
        if distributed.is_main():
            session.data.tokenizer.save(session.workdir / TOKENIZER_FOLDER)
        begins = step < session.horizon and not session.time_is_up()
        session.follow(at_once=begins)
        if begins:
            results.write_run(session, step, "running")
            for notice in session.experiment.loss.notices(session.config.train.batch_size):
                if distributed.is_main():
                    logging.warning("%s", notice)
            if distributed.is_main() and (long := estimate.warning(session, step)):
                logging.warning("%s", long)
        with StopRequest() as stop:
            step, state, why = Loop(session, step, stop)(state)
        if stop.signal is not None:
            results.write_run(session, step, why)
            session.say(f"stopped by {stop.name} at step {step}, saved; the same command continues")
            return 128 + stop.signal
        (finish or summary.finish)(session, state, step, why)
        return 0


def leave(session: Session) -> None:
    """What is done where another process ends this one: little, for nothing may keep it."""
    results.record_end(session.workdir, "failed")
    if (bucket := session.bucket) is not None:

        def push():
            with contextlib.suppress(UserError):
                bucket.push()

        bringing = threading.Thread(target=push, daemon=True)
        bringing.start()
        bringing.join(_PARTING_S)


class NotFinite(Exception):
    """The batch after which training ends: (step, metrics, bad ones in a row, tokens and mask)."""


class Loop:
    """Steps until the end, the time limit or a signal; the device is never waited for.

    A step's metrics are looked at when the next step has been sent off.
    """

    def __init__(self, session: Session, step: int, stop: StopRequest):
        self.session, self.step, self.stop = session, step, stop
        self.first = self.read = step  # before this session; batches read in all
        self.knobs = session.config.train
        self.progress = progress.Progress(self.knobs.steps, step)
        self.window = runlog.Window(self.knobs.batch_size * session.config.data.length)
        self.spikes = incidents.Spikes(self.knobs.spike_factor)
        self.meter = Meter(session)
        steps = self.knobs.profile_steps if distributed.is_main() else ()
        self.profile = Profile(steps, session.workdir, step, session.say)

    def __call__(self, state: TrainState) -> tuple[int, TrainState, str]:
        """(step, state, why it ended) after the last step, which is saved."""
        session, knobs = self.session, self.knobs
        mask, train_key = session.mask(), session.train_key()
        saved, why, pending, metric = self.step, "", None, None
        compiling = True
        try:
            if self.step < session.horizon:
                self.meter.prepare()
            while self.step < session.horizon:
                self.profile.before(self.step + 1)
                start = time.perf_counter()
                # Nothing may go to the device or come from it but what is meant to.
                with jax.transfer_guard("disallow"):
                    wish = session.agreement(self.wish())
                    if wish == _DECAY and not session.decay_began():  # answers come late
                        state = session.begin_decay(state, self.step)
                        self.progress.ends_at(session.horizon)
                    elif wish > _DECAY:
                        why = "time limit" if wish == _TIME_IS_UP else "signal"
                        self.stop.signal = None if wish == _TIME_IS_UP else wish - _TIME_IS_UP
                        break
                    inputs = self.meter.inputs(mask, None if pending is None else pending[1])
                    self.read += 1
                    with self.profile.named(self.step + 1):
                        state, values = session.train_step(
                            state, session.frozen, *inputs, train_key
                        )
                    self.step += 1
                    before, pending = pending, (self.step, values, inputs)
                    if before is not None:
                        self.note(*before)
                due = [every and self.step % every == 0 for every in
                       (knobs.eval_every, knobs.sample_every, knobs.save_every)]  # fmt: skip
                last = self.step == session.horizon
                if any(due) or last:
                    before, pending = pending, None
                    self.note(*before)
                self.profile.wait(self.step, values)
                seconds = time.perf_counter() - start
                session.clockwork.train_s += seconds
                if compiling:
                    session.clockwork.compile_s += seconds
                    compiling = False
                else:
                    self.window.add_time(seconds, self.meter.waited)
                self.profile.after(self.step)
                # A checkpoint can be the best one only if its held-out loss is known.
                rated = due[0] or (due[2] and knobs.keep_best and knobs.eval_every)
                metric = session.evaluate(state, self.step) if rated or last else None
                if due[1]:
                    session.write_samples(state, self.step)
                if due[2]:
                    session.save(state, self.step, metric)
                    saved = self.step
            if pending is not None:
                before, pending = pending, None
                self.note(*before)
            if self.step > saved:
                session.save(state, self.step, metric)
        except NotFinite as error:
            raise self.give_up(state, *error.args) from None
        except Exception as error:
            if (sentence := self.rescue(state, pending, error)) is None:
                raise
            raise sentence from error
        finally:
            self.profile.close(self.step)
            self.progress.close()
            session.batches.close()
        with progress.Waiting("writing the checkpoint"):
            session.checkpoints.wait()
        if not why:
            why = "time limit" if session.decay_began() else "complete"
        return self.step, state, why

    def wish(self) -> int:
        """Why this process would end before the next step; 0 if it would not."""
        if self.stop.signal is not None:
            return _TIME_IS_UP + self.stop.signal
        if distributed.preempted(self.step):
            return _TIME_IS_UP + signal.SIGTERM
        if self.session.time_is_up():
            return _TIME_IS_UP
        return _DECAY if self.session.decay_is_due(self.step) else 0

    def note(self, step: int, values: dict, inputs: Inputs) -> None:
        """Checks one step's metrics (waiting for them), logs the window's means when due."""
        values, in_a_row, skipped = self.check(step, values, inputs)
        if in_a_row:
            kept = self.keep_batch(step, values, inputs)
            if distributed.is_main():
                logging.warning("%s at step %d: batch skipped%s", not_finite(values), step, kept)
            self.progress.update(step, seconds_left=self.seconds_left())
        else:
            self.look_for_spike(step, values["grad_norm"])
            self.window.add(values)
            speed = self.window.tokens_per_second()
            self.progress.update(step, values["loss"], speed, self.seconds_left())
        if step % self.knobs.log_every == 0 or step == self.session.horizon:
            extra = self.meter.read(self.window)
            if skipped:
                extra["skipped_steps"] = skipped
            self.session.log.write(step, self.window.means() | extra)
            self.window.restart()

    def seconds_left(self) -> float | None:
        """Until train.max_minutes ends the run; None without a limit."""
        minutes = self.knobs.max_minutes
        if not minutes or self.session.decay_began():
            return None
        return 60 * minutes - self.session.clockwork.learning_s

    def check(self, step: int, values: dict, inputs: Inputs) -> tuple[dict, int, int]:
        """(metrics, bad batches in a row, skipped in all) on the host; NotFinite if too many."""
        values = {name: value.item() for name, value in jax.device_get(values).items()}
        in_a_row, skipped = values.pop("in_a_row"), values.pop("skipped")
        if in_a_row >= self.session.skip_limit:
            raise NotFinite(step, values, in_a_row, inputs)
        return values, in_a_row, skipped

    def look_for_spike(self, step: int, norm: float) -> None:
        median = self.spikes.median_if_spike(norm)
        if median is None:
            return
        if distributed.is_main():
            logging.warning("gradient norm %.3g at step %d is far above the median of the last "
                            "steps, %.3g", norm, step, median)  # fmt: skip
        self.session.log.write(step, {"spike/grad_norm": norm, "spike/median": median})

    def keep_batch(self, step: int, values: dict, inputs: Inputs) -> str:
        """Writes a bad batch for `flm_jax.training.reproduce`; returns what to say about it."""
        session = self.session
        tokens, mask = (distributed.gathered(array) for array in inputs)
        if not distributed.is_main():
            return ""
        path = incidents.path_of(session.workdir, step)
        command = pasteable(
            "reproduce", f"{session.place}/{path.relative_to(session.workdir).as_posix()}"
        )
        facts = {
            "loss": values["loss"],
            "grad_norm": values["grad_norm"],
            "seed": session.config.seed,
            "config": config_lib.to_json(session.config),
            "checkpoint_step": session.checkpoints.newest_known() or 0,
            "command": command,
        }
        try:
            kept = incidents.keep_batch(session.workdir, step, tokens, mask, facts)
        except UserError as error:  # a full disk, say: the other sentence matters more
            return f" (its batch is not kept: {error})"
        return f"; look at its batch with: {command}" if kept else ""

    def give_up(
        self, state: TrainState, step: int, values: dict, in_a_row: int, inputs: Inputs
    ) -> UserError:
        """Saves the state before the bad batches, the last one that of ``step``; says so.

        The state has not changed since then, though a later batch may have been sent off.
        """
        session, good = self.session, step - in_a_row
        failure = ""
        try:
            session.checkpoints.wait()
            if good > (session.checkpoints.latest_step() or 0):
                before = state.replace(skipped=state.skipped - in_a_row)
                session.save(before, good, None, give_back=self.read - good)
                session.checkpoints.wait()
        except UserError as error:
            failure = f"{error}; "
        newest = session.checkpoints.newest_known()
        saved = "there is no checkpoint yet" if newest is None else f"step {newest} is saved"
        row = f" and at the {in_a_row - 1} steps before" if in_a_row > 1 else ""
        remedy = "" if self.knobs.nonfinite == "skip" else ", or train.nonfinite=skip"
        kept = self.keep_batch(step, values, inputs)
        distributed.meet("giving up")  # the first process that ends takes all others with it
        return UserError(
            f"{not_finite(values)} at step {step}{row}; {failure}{saved}; try a lower learning "
            f"rate than {session.config.optim.learning_rate:g}, a longer warm-up{remedy}{kept}"
        )

    def rescue(
        self, state: TrainState, pending: tuple | None, error: Exception
    ) -> UserError | None:
        """Saves what is good after an exception; the sentence to end with, None if it needs none.

        The state was given to the training step: if the step itself failed there is none, and what
        is good is the newest checkpoint. So it is with several processes, which save together or
        not at all, and the others know nothing of this one's trouble.

        A restart is asked for (TryAgain) if this session got further than the one before, so that
        what happens again at once comes to an end.
        """
        session, alone = self.session, jax.process_count() == 1
        if not alone and distributed.is_network(error):  # another process, which is told elsewhere
            return None
        what = incidents.describe(error)
        try:
            session.checkpoints.wait()
        except UserError as failure:  # of an earlier step; this one is tried nevertheless
            what += f"; {failure}"
        try:
            if alone:
                if pending is not None:
                    self.check(*pending)
                if not any(leaf.is_deleted() for leaf in jax.tree.leaves(state)):
                    self.save_again(state)
                if pending is not None:
                    self.note(*pending)
        except NotFinite as worse:
            return self.give_up(state, *worse.args)
        except Exception as failure:  # the same trouble again: a full disk, a broken device
            if (also := incidents.describe(failure)) not in what:
                what += f"; {also}"
        newest = session.checkpoints.newest_known()
        got_on = ((newest or 0) if alone else self.step) > self.first
        saved = "there is no checkpoint yet" if newest is None else f"step {newest} is saved"
        sentence = (
            f"training stopped at step {self.step}: {what}; {saved}; the same command goes on"
        )
        of_the_machine = isinstance(error.__cause__ or error, incidents.OF_THE_MACHINE)
        if isinstance(error, UserError):
            again = isinstance(error, TryAgain) or (got_on and of_the_machine)
            return (TryAgain if again else UserError)(sentence)
        if not got_on and not of_the_machine:
            return None  # a mistake in the code that a restart would meet again
        sentence += incidents.keep_traceback(session.workdir, self.step, error)
        return (TryAgain if got_on else UserError)(sentence)

    def save_again(self, state: TrainState) -> None:
        """Saves this step unless that is done; UserError if it cannot be written."""
        session = self.session
        if self.step > (session.checkpoints.latest_step() or 0):
            session.save(state, self.step, None, give_back=self.read - self.step)
            session.checkpoints.wait()


def not_finite(values: dict) -> str:
    name = "grad_norm" if np.isfinite(values["loss"]) else "loss"
    return f"{name} is {values[name]}"
