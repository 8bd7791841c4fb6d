"""How fast batches come from prepared rows, without a model.

    python -m flm_jax.data.speed DIR [--batch_size=64] [--seconds=5] [--loaders=0]

DIR is a folder that flm_jax.data.prepare made. Compare rows/s with what a training step takes.
"""

import pathlib
import time

from absl import flags

from flm_jax import config, errors
from flm_jax.data.pipeline import Batches
from flm_jax.data.rows import Rows, prepared_below

BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "rows per batch", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 5.0, "how long to read", lower_bound=0.0)
LOADERS = flags.DEFINE_integer("loaders", 0, "data.num_workers of the config", lower_bound=0)


def measure(rows: Rows, batch_size: int, seconds: float, loaders: int) -> float:
    """Rows per second, after a first batch that opens the files and starts the workers."""
    batches = Batches(rows, batch_size, seed=0, num_workers=loaders)
    next(batches)
    start, count = time.perf_counter(), 0
    while not count or time.perf_counter() - start < seconds:
        count += len(next(batches)["tokens"])
    spent = time.perf_counter() - start
    batches.close()
    return count / spent


def main(argv: list[str]) -> None:
    """Command line."""
    if len(argv) != 2:
        raise errors.UserError("give one folder that flm_jax.data.prepare made")
    for rows in prepared_below(pathlib.Path(argv[1]).expanduser()):
        rate = measure(rows, BATCH_SIZE.value, SECONDS.value, LOADERS.value)
        print(
            f"{rows.path.name}: {rate:,.0f} rows/s, {rate * rows.length:,.0f} tokens/s "
            f"(batches of {BATCH_SIZE.value}, {LOADERS.value} loaders)"
        )


if __name__ == "__main__":
    config.run_main(main)
