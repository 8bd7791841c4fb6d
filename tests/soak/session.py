"""One session of training in a process of its own, which records what it does as it does it.

    python -m tests.soak.session WORKDIR RECORD STEPS SEED

The record has one JSON object a line: {"resumed": step, "digest": ...}, {"step": s, "rows": [...]},
{"saving": step, "digest": ...}, {"saved": step}, {"failed": step}, {"complete": step, "digest"}.
A line is one system call, so it survives the death of the process, and a torn one is told by the
missing end.
"""

import hashlib
import json
import os
import pathlib
import random
import sys
from typing import Any

import jax
import numpy as np

from flm_jax import config as config_lib
from flm_jax.checkpoint import Checkpoints, checkpoints_of
from flm_jax.data import Batches
from flm_jax.data.rows import Rows
from flm_jax.errors import UserError
from flm_jax.host import numerics
from flm_jax.training import loop
from flm_jax.training import workdir as workdir_lib
from flm_jax.training.session import Session
from flm_jax.training.step import TrainState

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


def learnt(state: TrainState) -> TrainState:
    """What must be the same in every session; the last step may grow from one to the next."""
    return state.replace(horizon=np.int32(0))


class Record:
    """Appends lines that survive a kill."""

    def __init__(self, path: pathlib.Path):
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def __call__(self, **facts: Any) -> None:
        os.write(self._file, b"\n" + json.dumps(facts).encode())


class RecordedCheckpoints(Checkpoints):
    """Says when a step counts as saved: when `wait` has returned."""

    def __init__(self, folder: str | os.PathLike, keep: tuple[int, int], record: Record):
        super().__init__(folder, *keep)
        self._record = record

    def wait(self) -> None:
        step = self._saving
        try:
            super().wait()
        except UserError:
            self._record(failed=step)
            raise
        if step is not None:
            self._record(saved=step)


class RecordedBatches(Batches):
    """Batches that write down which rows they yield, and for which step."""

    def __init__(self, rows: Rows, seed: int, record: Record):
        super().__init__(rows, BATCH, seed)
        self._record = record
        self._index = {np.asarray(rows[n]).tobytes(): n for n in range(len(rows))}
        if len(self._index) != len(rows):
            raise UserError("two rows of the soak's data are equal; choose another --seed")
        record(rows_in_all=len(rows))

    def __next__(self) -> dict[str, np.ndarray]:
        step = self.get_state()["next_row"] // BATCH + 1
        batch = super().__next__()
        rows = [self._index[row.tobytes()] for row in np.asarray(batch["tokens"])]
        self._record(step=step, rows=rows)
        return batch


class RecordedSession(Session):
    """The session that users have, with its reads and saves recorded."""

    def __init__(self, config: config_lib.Config, workdir: pathlib.Path, record: Record):
        self.record = record
        super().__init__(config, workdir)

    def open_checkpoints(self) -> Checkpoints:
        keep = self.config.train.keep_latest, self.config.train.keep_best
        place = checkpoints_of(self.workdir)
        return RecordedCheckpoints(place, keep, self.record)

    def open_batches(self) -> Batches:
        return RecordedBatches(self.data.rows["train"], self.config.seed, self.record)

    def restore_or_init(self) -> tuple[int, TrainState]:
        step, state = super().restore_or_init()
        self.record(resumed=step, digest=digest(learnt(state)))
        return step, state

    def save(self, state: TrainState, step: int, metric: float | None, give_back: int = 0) -> None:
        self.record(saving=step, digest=digest(learnt(state)))
        super().save(state, step, metric, give_back)


@numerics.pinned()
def train(workdir: pathlib.Path, record_path: pathlib.Path, steps: int, seed: int) -> int:
    """Trains as `loop.train` does; the exit code."""
    jax.config.update("jax_compilation_cache_dir", str(record_path.parent / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    config, record = tiny_config(record_path.parent, steps, seed), Record(record_path)

    def finish(session: Session, state: TrainState, step: int, why: str) -> None:
        record(complete=step, digest=digest(learnt(state)))

    with workdir_lib.locked(workdir):
        workdir_lib.check(config, workdir)
        return loop.go(RecordedSession(config, workdir, record), finish)


def main() -> None:
    workdir, record, steps, seed = sys.argv[1:]
    try:
        sys.exit(train(pathlib.Path(workdir), pathlib.Path(record), int(steps), int(seed)))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
