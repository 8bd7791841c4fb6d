"""A trace of a few training steps (train.profile_steps), for Perfetto or XProf.

``WORKDIR/profile/steps_FIRST-LAST`` has it, as `jax.profiler` writes it. It is made once: a session
that finds it makes no other one. Nothing that goes wrong here ends the training.
"""

import contextlib
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
from absl import logging

from flm_jax.host import progress

FOLDER = "profile"
STEP_NAME = "train_step"
_UNFINISHED = "unfinished"


class Profile:
    """Begins and ends the trace at its steps, as the loop calls it before and after every step.

    Args:
      steps: first step and number of steps; () for no trace.
      workdir: of the run.
      done: steps before this session. Its own first step compiles, and is in no trace.
      say: prints a line.
    """

    def __init__(
        self, steps: tuple[int, ...], workdir: pathlib.Path, done: int, say: Callable[[str], None]
    ):
        self._root, self._say = workdir / FOLDER, say
        self._first, self._last = (steps[0], sum(steps) - 1) if steps else (0, -1)
        self._running = False
        if not steps or self._folder(self._last).exists():
            self._first = 0  # no step
        elif self._first <= done + 1:
            logging.warning(
                "no trace of steps %d to %d: this session begins with step %d, which compiles; "
                "train.profile_steps=%d,%d would be its first",
                self._first, self._last, done + 1, done + 2, steps[1],
            )  # fmt: skip
            self._first = 0

    def before(self, step: int) -> None:
        """Before this step's time begins."""
        if step == self._first:
            self._begin()

    def named(self, step: int) -> contextlib.AbstractContextManager[Any]:
        """To be entered around the call that sends off this step."""
        if not self._running:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation(STEP_NAME, step_num=step)

    def wait(self, step: int, values: Any) -> None:
        """The last step of the trace is waited for, that all of it is in there."""
        if self._running and step == self._last:
            jax.block_until_ready(values)

    def after(self, step: int) -> None:
        """When this step's time is over."""
        if step == self._last:
            self.close(step)

    def close(self, step: int) -> None:
        """Ends a trace that is under way; it holds the steps up to this one."""
        if not self._running:
            return
        self._running = False
        folder, unfinished = self._folder(step), self._root / _UNFINISHED
        try:
            with progress.Waiting("writing the trace"):
                jax.profiler.stop_trace()
            if step < self._first:
                return shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.rename(folder)
        except Exception as error:
            return self._give_up(error)
        found = sorted(folder.glob("plugins/profile/*/*.trace.json.gz"))
        one = found[0] if found else folder
        self._say(
            f"trace of steps {self._first} to {step}: open {one} in https://ui.perfetto.dev, or "
            f"all of it with `pip install xprof` and `xprof --logdir={folder}`"
        )

    def _begin(self) -> None:
        place = self._root / _UNFINISHED
        try:
            shutil.rmtree(place, ignore_errors=True)  # of a session that was killed
            jax.profiler.start_trace(str(place))
            self._running = True
        except Exception as error:
            self._give_up(error)

    def _folder(self, last: int) -> pathlib.Path:
        return self._root / f"steps_{self._first}-{last}"

    def _give_up(self, error: Exception) -> None:
        said = " ".join(str(error).split()) or type(error).__name__
        logging.warning("no trace of steps %d to %d: %s", self._first, self._last, said)
