"""Progress on stderr: bars, and lines for what cannot be counted, such as a compilation.

On a terminal they are redrawn in place. Elsewhere (a log file) each is a line of its own, every
ten seconds at most.
"""

import contextlib
import functools
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TextIO, TypeVar

import tqdm

DELAY = 2.0  # what is over sooner says nothing
REFRESH_TERMINAL, REFRESH_FILE = 1.0, 10.0
CURSOR_UP = "\x1b[A"
Item = TypeVar("Item")
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
_silent = False


def silence() -> None:
    """Shows nothing from now on, in this process: of several, one shows the progress of all."""
    global _silent
    _silent = True


class _OneLineEach:
    """A file for tqdm that is not a terminal: each refresh is a line of its own, not a \\r.

    For a bar inside another one tqdm moves the cursor up and down; that is omitted.
    """

    def __init__(self, file: TextIO):
        self._file = file

    def write(self, text: str) -> None:
        text = text.replace(CURSOR_UP, "").strip()
        if text:
            self._file.write(text + "\n")

    def flush(self) -> None:
        self._file.flush()


def bar(iterable: Iterable | None = None, **options: Any) -> tqdm.tqdm:
    """tqdm on stderr with the project's manners; options go to tqdm.

    On a terminal it is an ordinary bar. Elsewhere (a log file) it is one line at most every 10 s.
    Pass delay=2 for work that is usually short.
    """
    return tqdm.tqdm(iterable, **_manners(options))


def _manners(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of tqdm: ours, and those given, which win unless nothing is to be shown."""
    if not sys.stderr.isatty():
        line = {"file": _OneLineEach(sys.stderr), "mininterval": REFRESH_FILE, "ncols": 79}
        options = {**line, **options}
        options["maxinterval"] = max(60, options["mininterval"])
    hidden = {"disable": True} if _silent else {}
    return {"dynamic_ncols": True, "leave": True, **options, **hidden}


class _TrainingBar(tqdm.tqdm):
    """A bar of steps that may end before the last one, because its time is up."""

    seconds_left: float | None = None

    @property
    def format_dict(self) -> dict[str, Any]:
        """Of tqdm, with ``left``: the time to the last step or, if that is less, to the limit."""
        found = dict(super().format_dict)
        done = found["n"] - found["initial"]
        rate = found["rate"] or (done / found["elapsed"] if found["elapsed"] else 0.0)
        left = (found["total"] - found["n"]) / rate if rate else math.inf
        if self.seconds_left is not None and self.seconds_left < left:
            limit = self.format_interval(max(0.0, self.seconds_left))
            return found | {"left": f"{limit} to train.max_minutes"}
        return found | {"left": self.format_interval(left) if rate else "?"}


class Progress:
    """The training bar: steps, loss, tokens per second, time left."""

    def __init__(self, total_steps: int, start_step: int = 0, description: str = "training"):
        options = {
            "total": total_steps,
            "initial": start_step,
            "desc": description,
            "unit": "step",
            "bar_format": "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
            "[{elapsed}<{left}{postfix}]",
        }
        self._bar = _TrainingBar(**_manners(options))

    def update(
        self,
        step: int,
        loss: float | None = None,
        tokens_per_second: float | None = None,
        seconds_left: float | None = None,
    ) -> None:
        """Move to `step` (steps done so far) and show the newest numbers.

        ``seconds_left``: until training ends, whatever step it has come to; None: no such limit.
        """
        self._bar.seconds_left = seconds_left
        shown = {}
        if loss is not None:
            shown["loss"] = f"{float(loss):.3f}"
        if tokens_per_second is not None:
            shown["tokens/s"] = f"{float(tokens_per_second):,.0f}"
        if shown:
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._bar.n)

    def ends_at(self, total_steps: int) -> None:
        """The last step is another one than was thought."""
        self._bar.total = total_steps

    def close(self) -> None:
        self._bar.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Waiting:
    """Says that something is going on, and for how long, once it has taken two seconds.

        with progress.Waiting("compiling the training step"):
            compiled = lowered.compile()

    shows "compiling the training step, 7 s", and in the end "compiling the training step: 9 s",
    which stays unless there was an exception. A thread draws it, so that it goes on while the main
    thread waits. An active bar stays whole.

    Args:
      text: what is going on.
      parts: number of batches that `each` goes through, of about the same duration; 0 for none.
      delay: seconds until the first line.
      refresh: seconds between lines; by default 1 on a terminal, 10 elsewhere.
      clock: seconds that only grow.
    """

    def __init__(
        self,
        text: str,
        parts: int = 0,
        *,
        delay: float = DELAY,
        refresh: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._text, self._parts = text, parts
        self._delay, self._clock = delay, clock
        default = REFRESH_TERMINAL if sys.stderr.isatty() else REFRESH_FILE
        self._refresh = default if refresh is None else refresh
        self._started: list[float] = []  # when each part began
        self._over = threading.Event()
        self._shown = False
        self._thread = threading.Thread(target=self._draw, name="waiting", daemon=True)

    def each(self, items: Sequence[Item]) -> Iterator[Item]:
        """The items, one per part; tells which one is being worked on."""
        for item in items:
            self._started.append(self._clock())
            yield item

    def line(self) -> str:
        """What is shown now."""
        now = self._clock()
        spent = _duration(now - self._start)
        if not self._started:
            return f"{self._text}, {spent}"
        done = len(self._started) - 1
        line = f"{self._text}: batch {done + 1} of {self._parts}, {spent}"
        if done:
            mean = (self._started[-1] - self._started[0]) / done
            left = self._started[-1] + mean * (self._parts - done) - now
            line += f", about {_duration(max(0.0, left))} left"
        return line

    def __enter__(self) -> "Waiting":
        self._start = self._clock()
        self._thread.start()
        return self

    def __exit__(self, kind, *_) -> None:
        self._over.set()
        self._thread.join()
        if self._shown and kind is None:
            batches = f"{self._parts} batches, " if self._parts > 1 else ""
            _message(f"{self._text}: {batches}{_duration(self._clock() - self._start)}")

    def _draw(self) -> None:
        if self._over.wait(self._delay):
            return
        self._shown = True
        with bar(desc=self.line(), bar_format="{desc}", leave=False) as line:
            while not self._over.wait(self._refresh):
                line.set_description_str(self.line())


def announced(function: Callable[Arguments, Result], text: str) -> Callable[Arguments, Result]:
    """A jitted function whose first call, which compiles it, says so with a `Waiting`."""
    calls = 0

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        nonlocal calls
        calls += 1
        with Waiting(text) if calls == 1 else contextlib.nullcontext():
            return function(*args, **kwargs)

    return call


def _message(text: str) -> None:
    """One line on stderr that tears no bar."""
    if not _silent:
        tqdm.tqdm.write(text, file=sys.stderr)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
