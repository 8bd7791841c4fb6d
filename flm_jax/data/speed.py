"""How fast batches come from prepared rows, and how many of them a training step takes.

    flm benchmark data --config=configs/text8.py:pretrain,small
    flm benchmark data DIR [--batch_size=64] [--seconds=5] [--loaders=0]

With --config the rows, the batch size and the loaders are those of the config, and in the same run
`flm_jax.lab.benchmark` measures the training step of the config in a process of its own. DIR is a
folder that flm_jax.data.prepare made; then there is no model.
"""

import json
import pathlib
import subprocess
import sys
import time

from absl import flags

from flm_jax import config, data, errors
from flm_jax.cli import flags as command_line
from flm_jax.data.pipeline import Batches
from flm_jax.data.rows import Rows, prepared_below

CONFIG = command_line.config_flag()


def define_flags() -> None:
    """The flags of the tool; in a function, because other tools have flags of the same names."""
    flags.DEFINE_integer("batch_size", 64, "rows per batch", lower_bound=1)
    flags.DEFINE_float("seconds", 5.0, "how long to read", lower_bound=0.0)
    flags.DEFINE_integer("loaders", 0, "data.num_workers of the config", lower_bound=0)


def measure(rows: Rows, batch_size: int, seconds: float, loaders: int) -> tuple[float, float]:
    """Rows per second, by the clock and by the processor time of this process.

    A first batch, which opens the files and starts the workers, does not count.
    """
    batches = Batches(rows, batch_size, seed=0, num_workers=loaders)
    next(batches)
    start, start_cpu, count = time.perf_counter(), time.process_time(), 0
    while not count or time.perf_counter() - start < seconds:
        count += len(next(batches)["tokens"])
    spent, spent_cpu = time.perf_counter() - start, time.process_time() - start_cpu
    batches.close()
    return count / spent, count / max(spent_cpu, 1e-6)


def report(rows: Rows, batch_size: int, loaders: int) -> float:
    """Measures, prints, and returns rows per second by the clock."""
    rate, cpu_rate = measure(rows, batch_size, flags.FLAGS.seconds, loaders)
    print(
        f"{rows.path.name}: {rate:,.0f} rows/s, {rate * rows.length:,.0f} tokens/s, "
        f"{cpu_rate:,.0f} rows per processor second (batches of {batch_size}, {loaders} loaders)"
    )
    return rate


def training_rate(settings: dict, vocab_size: int, words: list[str]) -> float:
    """Rows per second that the training step of a config takes, measured in another process.

    Args:
      words: the flags that make the config.

    Raises:
      UserError: the benchmark failed; its own message is on stderr.
    """
    space = settings["space"]
    if space == "auto":
        space = "projected" if vocab_size > 2 * settings["model"]["width"] else "onehot"
    command = [sys.executable, "-m", "flm_jax.lab.benchmark", "train", f"--space={space}", "--json"]
    done = subprocess.run(
        [*command, f"--vocab={vocab_size}", *words], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise errors.UserError("the training step could not be measured, see above; correct that")
    numbers = json.loads(done.stdout.splitlines()[-1])
    return numbers["tokens_per_second"] / settings["data"]["length"]


def main(argv: list[str]) -> None:
    """Command line."""
    if bool(argv[1:]) == bool(CONFIG.present) or len(argv) > 2:
        raise errors.UserError(
            "give either one folder that flm_jax.data.prepare made, or --config=FILE"
        )
    if argv[1:]:
        for rows in prepared_below(pathlib.Path(argv[1]).expanduser()):
            report(rows, flags.FLAGS.batch_size, flags.FLAGS.loaders)
        return
    settings = config.to_dict(CONFIG.value)
    loaded = data.load_data(settings["data"], settings["tokenizer"], splits=["train"])
    rows = loaded.rows["train"]
    rate = report(rows, settings["train"]["batch_size"], settings["data"]["num_workers"])
    pairs = zip(["", *sys.argv], sys.argv, strict=False)
    words = [word for last, word in pairs if word.startswith("--config") or last == "--config"]
    taken = training_rate(settings, loaded.tokenizer.vocab_size, words)
    times = f"batches come {rate / taken:,.0f} times as fast"
    print(f"a training step takes {taken:,.0f} rows/s: {times}")


if __name__ == "__main__":
    define_flags()
    command_line.run_main(main)
