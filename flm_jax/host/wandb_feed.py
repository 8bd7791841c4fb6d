"""Weights & Biases: what `runlog.MetricsLog` writes is sent there, too (the extra `[wandb]`).

The library runs in a process of its own (wandb_worker.py), so that nothing which it does reaches
the training: a login that it waits for, a network that is not there, an exception, hooks that run
as Python ends. Training puts rows into a queue and goes on; a thread writes them to that process.
What fails is said once, and from then on nothing is sent. ``wandb.json`` in the workdir has the id
of the run, with which the next session goes on in it.
"""

import contextlib
import json
import os
import pathlib
import queue
import secrets
import signal
import string
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

from absl import logging

from flm_jax.errors import UserError
from flm_jax.host import files, progress

ID_FILE = "wandb.json"
QUEUED = 10_000  # lines that wait at most: days of a network that hangs
SECONDS = 60.0  # for the rest, when the command ends; W&B itself gives up after half of it
_WORKER = pathlib.Path(__file__).with_name("wandb_worker.py")
_LETTERS = string.ascii_lowercase + string.digits
_END = None


class WandbFeed:
    """A run on Weights & Biases that gets everything which is logged; never raises, never waits.

    Args:
      workdir: has the id; W&B keeps its own files in the folder wandb there.
      project: PROJECT or ENTITY/PROJECT.
      config: shown beside the run; anything that JSON can hold.
    """

    def __init__(self, workdir: str | os.PathLike, project: str, config: Mapping[str, Any]):
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(QUEUED)
        self._begun, self._over = False, False
        self._process: subprocess.Popen[str] | None = None
        self._how = pathlib.Path(workdir).absolute(), project, config
        self._thread = threading.Thread(target=self._feed, name="wandb", daemon=True)

    def begin(self) -> None:
        """Has the run appear; else the first thing that is written does."""
        if not self._begun:
            self._begun = True
            self._thread.start()

    def write(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        numbers = {name: float(value) for name, value in values.items()}
        self._put({"do": "numbers", "values": {"step": step, **numbers}})

    def write_samples(self, step: int, texts: Sequence[str]) -> None:
        self._put({"do": "samples", "step": step, "texts": list(texts)})

    def write_report(self, path: pathlib.Path) -> None:
        self._put({"do": "report", "path": str(path.absolute())})

    def close(self, failed: bool = False) -> None:
        """Ends the run; waits for what is on its way, a minute at most."""
        if not self._begun:
            return
        self._put({"do": "end", "code": int(failed)})
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(_END)
        with progress.Waiting("sending the rest to W&B"):
            self._thread.join(SECONDS)
        if self._thread.is_alive():
            where = "`wandb sync` sends what is in the workdir's folder wandb"
            self._give_up(f"it did not take everything in {SECONDS:.0f} s; {where}")
            self._kill()

    def _put(self, item: dict[str, Any]) -> None:
        if self._over:
            return
        self.begin()
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._give_up(f"{QUEUED} lines are waiting for it")

    def _give_up(self, why: str) -> None:
        if not self._over:
            self._over = True
            logging.warning(
                "nothing more goes to W&B: %s; the files of the workdir go on, and "
                "train.wandb='' is without it",
                why.rstrip(". "),
            )

    def _feed(self) -> None:
        """Of the thread: everything to the process, until it or the training ends."""
        try:
            self._process = process = subprocess.Popen(
                [sys.executable, "-P", str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C is for the training, which says how it ended
            )
            assert process.stdin is not None and process.stdout is not None
            try:
                with process.stdin as pipe:
                    item: dict[str, Any] | None = first_line(*self._how)
                    while item is not _END:
                        pipe.write(json.dumps(item) + "\n")
                        pipe.flush()
                        item = self._queue.get()
            except BrokenPipeError:
                pass  # it has ended, and says why
            answer = process.stdout.read()
            code = process.wait()
            if answer or code:
                why = json.loads(answer)["failed"] if answer else f"it ended with code {code}"
                self._give_up(why)
        except Exception as error:
            self._give_up(str(error) or type(error).__name__)
        self._over = True

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)


def first_line(workdir: pathlib.Path, project: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """How the worker begins; what variables of the environment say is left to them."""
    entity, _, project = project.rpartition("/")
    init: dict[str, Any] = {
        "project": project,
        "id": run_id(workdir, f"{entity}/{project}"),
        "resume": "allow",
        "config": {**config, "workdir": str(workdir)},
        "allow_val_change": True,  # a resumed run may be longer than it was
    }
    init |= {"entity": entity} if entity else {}
    defaults = {"WANDB_NAME": ("name", workdir.name), "WANDB_DIR": ("dir", str(workdir))}
    init |= dict(value for name, value in defaults.items() if name not in os.environ)
    settings: dict[str, Any] = {"finish_timeout": SECONDS / 2, "x_stats_pid": os.getpid()}
    settings |= {} if "WANDB_CONSOLE" in os.environ else {"console": "off"}
    return {"argv": sys.argv, "init": init, "settings": settings}


def run_id(workdir: pathlib.Path, project: str) -> str:
    """The id that the workdir has for this project; another project gets a new one.

    The first one is that of WANDB_RUN_ID, or drawn.
    """
    path = workdir / ID_FILE
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["project"] == project:
            return str(stored["id"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is none yet
    fresh = os.environ.get("WANDB_RUN_ID") or "".join(secrets.choice(_LETTERS) for _ in range(8))
    with contextlib.suppress(UserError):  # a full disk will be heard of elsewhere
        files.write_atomically(path, json.dumps({"project": project, "id": fresh}) + "\n")
    return fresh
