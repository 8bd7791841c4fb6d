"""One session of training in a process of its own, which records what it does as it does it.

    python -m tests.soak.session WORKDIR RECORD STEPS SEED

The record has one JSON object a line: {"resumed": step, "digest": ...}, {"step": s, "rows": [...]},
{"saving": step, "digest": ...}, {"saved": step}, {"failed": step}, {"complete": step, "digest"}.
A line is one system call, so it survives the death of the process, and a torn one is told by the
missing end.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import random
import sys
from typing import Any

import jax
import numpy as np

from flm_jax import cli
from flm_jax import config as config_lib
from flm_jax.checkpoint import Checkpoints
from flm_jax.cli.command import Command
from flm_jax.errors import UserError
from flm_jax.host import numerics
from flm_jax.knobs import knob
from flm_jax.training import loop
from flm_jax.training import workdir as workdir_lib

SAVE_EVERY = 20
BATCH = 8


def write_corpus(path: pathlib.Path, seed: int) -> None:
    """Lines of random digits, so that every row of the data is unlike all others."""
    draw = random.Random(seed)
    lines = (f"{n} {draw.getrandbits(60)}" for n in range(1500))
    path.write_text("\n".join(lines))


def tiny_config(folder: pathlib.Path, steps: int, seed: int) -> config_lib.Config:
    """A model of a few thousand numbers that saves often; ``steps`` may grow between sessions."""
    tree = {
        "seed": seed,
        "data": {
            "name": "text_files",
            "length": 24,
            "cache_dir": str(folder / "cache"),
            "options": {"path": str(folder / "corpus.txt")},
        },
        "tokenizer": {"name": "characters"},
        "model": {"width": 16, "depth": 1, "heads": 2, "cond_dim": 8, "remat": False},
        "optim": {"learning_rate": 3e-3, "warmup_steps": 2, "ema_decay": 0.9},
        "train": {
            "batch_size": BATCH,
            "steps": steps,
            "log_every": 10,
            "eval_every": 100,
            "sample_every": 0,
            "save_every": SAVE_EVERY,
            "keep_latest": 3,
            "keep_best": 1,
            "eval_rows": 8,
            "eval_taus": (0.5,),
        },
        "sampler": {"steps": (1,), "num_samples": 4, "batch_size": 4},
    }
    return config_lib.resolve(tree)


def digest(tree: Any) -> str:
    """SHA-256 over all leaves, names and dtypes included."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(jax.device_get(tree))[0]:
        total.update(f"{jax.tree_util.keystr(path)}{leaf.dtype}{leaf.shape}".encode())
        total.update(np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()


class Record:
    """Appends lines that survive a kill."""

    def __init__(self, path: pathlib.Path):
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def __call__(self, **facts: Any) -> None:
        os.write(self._file, b"\n" + json.dumps(facts).encode())


class RecordedCheckpoints(Checkpoints):
    """Says when a step counts as saved: when `wait` has returned."""

    record: Record

    def wait(self) -> None:
        step = self._saving
        try:
            super().wait()
        except UserError:
            self.record(failed=step)
            raise
        if step is not None:
            self.record(saved=step)


class RecordedRun(loop.Run):
    """The run that users have, with its reads and saves recorded."""

    def __init__(self, config: config_lib.Config, workdir: pathlib.Path, record: Record):
        super().__init__(config, workdir)
        self.record = record
        self.checkpoints.__class__ = RecordedCheckpoints
        self.checkpoints.record = record
        rows = self.data.rows["train"]
        self._index = {np.asarray(rows[n]).tobytes(): n for n in range(len(rows))}
        if len(self._index) != len(rows):
            raise UserError("two rows of the soak's data are equal; choose another --seed")
        record(rows_in_all=len(rows))

    def restore_or_init(self):
        step, state = super().restore_or_init()
        self.record(resumed=step, digest=digest(state))
        self.batches = RecordedBatches(self.batches, self._index, step, self.record)
        return step, state

    def save(self, state, step, metric, give_back=0):
        self.record(saving=step, digest=digest(state))
        super().save(state, step, metric, give_back)


class RecordedBatches:
    """Batches that write down which rows they yield, and for which step."""

    def __init__(self, batches: Any, index: dict[bytes, int], step: int, record: Record):
        self._batches, self._index, self._step, self._record = batches, index, step, record

    def __next__(self):
        batch = next(self._batches)
        self._step += 1
        rows = [self._index[row.tobytes()] for row in np.asarray(batch["tokens"])]
        self._record(step=self._step, rows=rows)
        return batch

    def get_state(self) -> dict:
        return self._batches.get_state()

    def close(self) -> None:
        self._batches.close()


@numerics.pinned()
@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    workdir: str = knob("", "of the run", word=True)
    record: str = knob("", "the file that lines are added to", word=True)
    steps: int = knob(0, "of the run", word=True)
    seed: int = knob(0, "of the run and of its text", word=True)


def run(options: Options) -> int:
    workdir, record = pathlib.Path(options.workdir), pathlib.Path(options.record)
    jax.config.update("jax_compilation_cache_dir", str(record.parent / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    config = tiny_config(record.parent, options.steps, options.seed)
    loop.outcome.finish = lambda run, state, step, why: run.record(
        complete=step, digest=digest(state)
    )
    with workdir_lib.locked(workdir):
        workdir_lib.check(config, workdir)
        return loop.go(RecordedRun(config, workdir, Record(record)))


if __name__ == "__main__":
    cli.start("session", Command(__doc__ or "", Options, run), sys.argv[1:])
