"""Batches of rows: shuffled each epoch, without end, resumable on any number of processes."""

import dataclasses
import multiprocessing
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from flm_jax import errors
from flm_jax.data.rows import Rows
from flm_jax.data.shuffle import shuffled

if TYPE_CHECKING:
    import grain

_ORDER = 2  # version of the order of rows; 1 was that of grain's own shuffle


class Batches:
    """Iterator of `{"tokens": int32 (global_batch / shard_count, L)}`.

    Where rows have a given part, "given" says which tokens that is: bool, of the same shape.

    Global batch k is the same rows in the same order for every shard count and every number of
    workers; shard i of n yields its i-th n-th part, a contiguous block. Epochs are shuffled
    differently and follow each other without a gap: a batch may hold the end of one and the
    beginning of the next, and with fewer rows than the batch several epochs.

    With workers the process that makes this must be importable without side effects (guard
    `if __name__ == "__main__"`): grain starts workers by spawning.
    """

    def __init__(
        self,
        rows: Rows,
        global_batch: int,
        seed: int,
        shard_index: int = 0,
        shard_count: int = 1,
        num_workers: int = 0,
    ):
        """Raises UserError when `global_batch` cannot be divided among the shards."""
        if global_batch < 1 or global_batch % shard_count:
            raise errors.UserError(
                f"batch size {global_batch} must be a positive multiple of the {shard_count} "
                f"processes; try {max(1, global_batch // shard_count) * shard_count}"
            )
        if not 0 <= shard_index < shard_count:
            raise ValueError(f"shard_index {shard_index} is not below shard_count {shard_count}")
        self._rows, self._global_batch, self._seed = rows, global_batch, seed
        self._shard = (shard_index, shard_count)
        self._num_workers = num_workers
        self._iterator: grain.DatasetIterator | None = None
        self._start(0)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch; raises TryAgain if a worker died, UserError if one could not read."""
        try:
            return self._rows.split(next(self._opened())[0])
        except Exception as error:
            if not self._num_workers:
                raise
            died = isinstance(error, RuntimeError)  # as grain says it
            raise (errors.TryAgain if died else errors.UserError)(
                f"the data.num_workers={self._num_workers} processes that read data failed "
                f"({errors.first_line(error)}), perhaps for lack of memory or of room in /dev/shm; "
                "data.num_workers=0 reads without them"
            ) from error

    def get_state(self) -> dict[str, Any]:
        """JSON-able; the same on all shards after the same number of batches."""
        parts = self._opened().get_state()["global_next_index"]
        return {
            "next_row": self._parts.first + parts * self._parts.size,
            "seed": self._seed,
            "rows": self._rows.fingerprint,
            "order": _ORDER,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken; shards, workers and the batch size may be others.

        Raises:
          UserError: the state is of other rows or another seed: going on would not be exact.
        """
        if not isinstance(state, dict) or not {"next_row", "seed", "rows"} <= state.keys():
            raise errors.UserError(
                f"the saved position in the data is damaged ({state!r}); resume from an earlier "
                "checkpoint"
            )
        if state["rows"] != self._rows.fingerprint:
            raise errors.UserError(
                f"the checkpoint was trained on other rows (SHA-256 {state['rows'][:12]}) than "
                f"those of {self._rows.path} ({self._rows.fingerprint[:12]}); restore the data set "
                "and tokenizer it was trained with, or start in a new workdir with init_from"
            )
        if state["seed"] != self._seed:
            raise errors.UserError(
                f"the checkpoint shuffled its data with seed {state['seed']}, but the seed is "
                f"{self._seed}; set it back, or start in a new workdir with init_from"
            )
        if state.get("order") != _ORDER:
            raise errors.UserError(
                f"the checkpoint was written by another version of flm_jax, which shuffled rows in "
                f"order {state.get('order', 1)}, this one in order {_ORDER}; resume with that "
                "version, or start in a new workdir with init_from"
            )
        self._start(int(state["next_row"]))

    def close(self) -> None:
        """Stops the workers; the iterator cannot be used afterwards."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _opened(self) -> "grain.DatasetIterator":
        assert self._iterator is not None, "the batches were closed"
        return self._iterator

    def _start(self, next_row: int) -> None:
        import grain

        self.close()
        index, count = self._shard
        self._parts = _Parts(self._rows, self._seed, next_row, self._global_batch // count)
        workers = None
        if self._num_workers:
            _parse_flags()
            workers = grain.MultiprocessingOptions(
                num_workers=self._num_workers, per_worker_buffer_size=4
            )
        self._iterator = iter(
            grain.experimental.ElasticIterator(
                # An element is all that a shard needs of a batch, not a row: what grain does for
                # each element takes longer than to read fifty rows.
                grain.MapDataset.range(sys.maxsize // self._global_batch).map(self._parts.read),
                count,  # elements per global batch
                grain.sharding.ShardOptions(shard_index=index, shard_count=count),
                # Reading a memory map is faster than handing it to a thread.
                read_options=grain.ReadOptions(num_threads=0, prefetch_buffer_size=0),
                multiprocessing_options=workers,
            )
        )


def fixed_batch(rows: Rows, n: int, seed: int) -> dict[str, np.ndarray]:
    """`{"tokens": int32 (n, L)}` for evaluation, always the same for the same arguments.

    "given", bool (n, L), is with it where rows have a given part.
    Drawn without replacement; when `n` exceeds the number of rows they are repeated in turn.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows.batch(np.resize(order, n))


@dataclasses.dataclass(frozen=True)
class _Parts:
    """The endless stream of shuffled rows from place `first` on, cut into parts of `size` rows.

    Part k * shards + i belongs to global batch k and shard i.
    """

    rows: Rows
    seed: int
    first: int
    size: int

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        _end_with_parent()

    def read(self, number: int) -> np.ndarray:
        """The rows of a part as they are stored: int32 (size, columns)."""
        place_N = self.first + number * self.size + np.arange(self.size)
        return self.rows.stored(shuffled(place_N, len(self.rows), self.seed))


def _end_with_parent() -> None:
    """In a worker: a parent that was killed or left at once would not tell it to end."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _parse_flags() -> None:
    """Grain's workers read absl flags, which nobody has parsed in a notebook or a script."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
