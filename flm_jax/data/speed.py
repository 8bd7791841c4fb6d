"""How fast batches come from prepared rows, and how many of them a training step takes."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from flm_jax import data, errors
from flm_jax.data.pipeline import Batches
from flm_jax.data.rows import Rows


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


def report(rows: Rows, batch_size: int, seconds: float, loaders: int) -> float:
    """Measures, prints, and returns rows per second by the clock."""
    rate, cpu_rate = measure(rows, batch_size, seconds, loaders)
    print(
        f"{rows.path.name}: {rate:,.0f} rows/s, {rate * rows.length:,.0f} tokens/s, "
        f"{cpu_rate:,.0f} rows per processor second (batches of {batch_size}, {loaders} loaders)"
    )
    return rate


def training_rate(settings: Mapping, vocab_size: int, words: Sequence[str]) -> float:
    """Rows per second that the training step of a config takes, measured in another process.

    Args:
      words: the --config options that make the settings.

    Raises:
      UserError: the benchmark failed; its own message is on stderr.
    """
    space = settings["space"]
    if space == "auto":
        space = "projected" if vocab_size > 2 * settings["model"]["width"] else "onehot"
    command = [sys.executable, "-m", "flm_jax", "benchmark", "train", f"--space={space}", "--json"]
    done = subprocess.run(
        [*command, f"--vocab={vocab_size}", *words], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise errors.UserError("the training step could not be measured, see above; correct that")
    numbers = json.loads(done.stdout.splitlines()[-1])
    return numbers["tokens_per_second"] / settings["data"]["length"]


def beside_training(settings: Mapping, words: Sequence[str], seconds: float) -> None:
    """Measures and prints both for a config: `settings` are its sections, `words` as above."""
    loaded = data.load_data(settings["data"], settings["tokenizer"], splits=["train"])
    batch_size, loaders = settings["train"]["batch_size"], settings["data"]["num_workers"]
    rate = report(loaded.rows["train"], batch_size, seconds, loaders)
    taken = training_rate(settings, loaded.tokenizer.vocab_size, words)
    times = f"batches come {rate / taken:,.0f} times as fast"
    print(f"a training step takes {taken:,.0f} rows/s: {times}")
