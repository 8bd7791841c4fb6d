"""Numbers over time: a JSONL log (always), TensorBoard (if tensorboardX is there), and followers.

``metrics.jsonl`` holds one JSON object a line: ``step``, ``time`` (unix seconds) and any number of
named values. JSON has no NaN or infinity, so these are written as the strings ``"nan"``, ``"inf"``
and ``"-inf"``; `read` turns them back into floats. Only the process that owns the workdir (host 0)
may open a `MetricsLog`. A follower gets all that is logged, and the samples and the report of the
run; `flm_jax.host.wandb_feed` is one.
"""

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, SupportsFloat

from absl import logging

from flm_jax.errors import UserError
from flm_jax.host import files

if TYPE_CHECKING:
    import tensorboardX

FILE_NAME = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Follower(Protocol):
    """Somewhere else that a run is shown; it neither raises nor waits."""

    def write(self, step: int, values: Mapping[str, SupportsFloat]) -> None: ...

    def write_samples(self, step: int, texts: Sequence[str]) -> None: ...

    def write_report(self, path: pathlib.Path) -> None: ...

    def close(self, failed: bool = False) -> None: ...


class MetricsLog:
    """Append-only log of scalars in `workdir`, safe against kill -9 at any moment.

    Every line is flushed when it is written. Opening the log drops what a kill left behind: an
    incomplete or unreadable end of the file. Raises UserError when the folder cannot be written.
    """

    def __init__(self, workdir: str | os.PathLike, tensorboard: bool = True):
        self.path = pathlib.Path(workdir) / FILE_NAME
        self._tensorboard = tensorboard
        self._events: tensorboardX.SummaryWriter | None = None
        self._purge_step = None
        self._followers: list[Follower] = []
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _drop_torn_end(self.path)
            self._file = open(self.path, "ab")
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; choose another --workdir"
            ) from error

    def write(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Append one line {"step", "time", **values}; values are numbers or 0-d arrays."""
        step = int(step)
        row = {"step": step, "time": round(time.time(), 3)}
        row |= {name: _plain(value) for name, value in values.items()}
        self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        self._file.flush()
        events = self._event_writer()
        if events is not None:
            for name, value in values.items():
                events.add_scalar(name, float(value), step)
        for follower in self._followers:
            follower.write(step, values)

    def follow(self, follower: Follower) -> None:
        """Tells it everything from now on; it is closed with the log."""
        self._followers.append(follower)

    def write_samples(self, step: int, texts: Sequence[str]) -> None:
        """Samples of this step, for TensorBoard and followers; the caller keeps them in a file."""
        step = int(step)
        if (events := self._event_writer()) is not None:
            events.add_text("samples", _as_markdown(texts), step)
        for follower in self._followers:
            follower.write_samples(step, texts)

    def write_report(self, path: pathlib.Path) -> None:
        """The page of a run that has ended, for followers."""
        for follower in self._followers:
            follower.write_report(path)

    def truncate_after(self, step: int) -> None:
        """Drop every row with a later step, atomically: call it after restoring a checkpoint."""
        self._file.close()
        with open(self.path, "rb") as old:
            kept = [line for line in old if (row := _parse(line)) and row["step"] <= step]
        files.write_atomically(self.path, b"".join(kept))
        self._file = open(self.path, "ab")
        self._close_events()
        self._purge_step = int(step) + 1  # TensorBoard hides what an older event file has later

    def close(self, failed: bool = False) -> None:
        """Never fails: a line that could not be written was an error when it was to be written.

        Args:
          failed: whether the run ended with an exception; for followers.
        """
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._close_events()
        for follower in self._followers:
            follower.close(failed)
        self._followers = []

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.close(failed=kind is not None)

    def _event_writer(self) -> "tensorboardX.SummaryWriter | None":
        if self._events is not None and not _is_alive(self._events):
            # Its thread ended at a full disk, say; rows for it would wait in its queue for ever.
            logging.warning(
                "no more TensorBoard files: they could not be written; %s goes on", FILE_NAME
            )
            with contextlib.suppress(OSError):
                self._close_events()
            self._tensorboard, self._events = False, None
        if self._tensorboard and self._events is None:
            try:
                import tensorboardX
            except ImportError:
                self._tensorboard = False
                logging.warning(
                    "no TensorBoard files: `pip install tensorboardX` to get them (%s is complete "
                    "without it)",
                    FILE_NAME,
                )
                return None
            self._events = tensorboardX.SummaryWriter(
                str(self.path.parent / TENSORBOARD_FOLDER),
                purge_step=self._purge_step,
                max_queue=1000,  # more than a line has: it must not wait for a thread that ended
            )
        return self._events

    def _close_events(self):
        if self._events is not None:
            self._events.close()
            self._events = None


def read(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl in file order; [] where there is no file.

    Lines that are not JSON objects with a step are omitted: a run that is still writing may show
    half a line at the end.
    """
    path = pathlib.Path(workdir) / FILE_NAME
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        rows = [row for row in map(_parse, file) if row is not None]
    for row in rows:
        for name, value in row.items():
            if isinstance(value, str) and value in _NOT_FINITE:
                row[name] = _NOT_FINITE[value]
    return rows


def _is_alive(events: "tensorboardX.SummaryWriter") -> bool:
    """Whether the thread that writes the event file is; tensorboardX does not tell."""
    from tensorboardX.writer import FileWriter

    writer = events.file_writer
    worker = writer.event_writer._worker if isinstance(writer, FileWriter) else None
    return worker is not None and worker.is_alive()


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _plain(value: SupportsFloat) -> float | int | str:
    if isinstance(value, int):
        return value
    value = float(value)
    return value if math.isfinite(value) else str(value)


def _drop_torn_end(path: pathlib.Path) -> None:
    """Cut the file after its last line that is complete and readable."""
    if not path.exists():
        return
    end = 0
    with open(path, "rb") as file:
        for line in file:
            position = file.tell()
            if line.endswith(b"\n") and _parse(line) is not None:
                end = position
    if end < path.stat().st_size:
        os.truncate(path, end)


def _as_markdown(texts: Sequence[str]) -> str:
    """Each text as it stands, for TensorBoard: in Markdown four spaces begin what is literal."""
    parts = []
    for i, text in enumerate(texts):
        lines = "\n".join(f"    {line}" for line in text.splitlines()) or "    "
        parts.append(f"**{i}**\n\n{lines}\n")
    return "\n".join(parts)


class Window:
    """Running means of a step's metrics since the last log line, and the speed meanwhile."""

    def __init__(self, tokens_per_step: int):
        self._tokens = tokens_per_step
        self.restart()

    def restart(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = 0
        self._timed = 0
        self._seconds = 0.0
        self._waited = 0.0

    def add(self, values: dict[str, float]) -> None:
        """Metrics of one more step."""
        self._count += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def add_time(self, seconds: float, waited: float = 0.0) -> None:
        """Seconds of one more step; leave out steps that compiled something.

        ``waited``: how many of them its batch was waited for.
        """
        self._timed += 1
        self._seconds += seconds
        self._waited += waited

    def means(self) -> dict[str, float]:
        return {name: value / max(1, self._count) for name, value in self._sums.items()}

    def tokens_per_second(self) -> float | None:
        """None until a step has been timed."""
        return self._timed * self._tokens / self._seconds if self._seconds else None

    def seconds_per_step(self) -> float | None:
        """None until a step has been timed."""
        return self._seconds / self._timed if self._seconds else None

    def share_waited(self) -> float | None:
        """For batches, of the time of steps; None until a step has been timed."""
        return self._waited / self._seconds if self._seconds else None
