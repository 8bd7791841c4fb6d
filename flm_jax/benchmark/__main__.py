"""Speed and memory of the training step or of sampling, on synthetic tokens.

    python -m flm_jax.benchmark train --config=configs/bench_cpu.py --space=both --json
    python -m flm_jax.benchmark sample --config=configs/bench_cpu.py --space=projected
    python -m flm_jax.benchmark train --config=configs/owt.py --batch=16

"both" runs the two state spaces in child processes, in turn (the peak memory of a process never
falls), and prints the ratios. "onehot" is the official cost: states over the vocabulary, and a
float32 head that sees all tokens at once. With --json the last line printed is JSON. Neither grain
nor orbax is needed.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
from typing import Any

from absl import flags

from flm_jax import config as config_lib
from flm_jax import metrics
from flm_jax.errors import UserError

MODES = ("train", "sample")
SPACES = ("projected", "onehot", "both")
VOCABULARIES = {"gpt2": 50258, "bert-base-uncased": 30522}

CONFIG = config_lib.config_flag()
SPACE = flags.DEFINE_enum("space", "both", SPACES, "state space: projected, onehot or both")
BATCH = flags.DEFINE_integer("batch", 0, "sequences; 0 = train.batch_size", lower_bound=0)
LENGTH = flags.DEFINE_integer("length", 0, "tokens per sequence; 0 = data.length", lower_bound=0)
VOCAB = flags.DEFINE_integer("vocab", 0, "vocabulary; 0 = that of the tokenizer", lower_bound=0)
LOSS = flags.DEFINE_string("loss", "", "loss by name; '' = that of the config")
SAMPLING_STEPS = flags.DEFINE_integer("sampling_steps", 32, "network evaluations", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 5, "timed runs, after one that is not", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 1, "processes per space, in turn", lower_bound=1)
JSON = flags.DEFINE_bool("json", False, "print the numbers as JSON in the last line")


def main(argv: list[str]) -> int:
    if len(argv) != 2 or argv[1] not in MODES:
        given = " ".join(argv[1:]) or "nothing"
        raise UserError(f"say what to measure, {' or '.join(MODES)}, not {given!r}")
    mode = argv[1]
    if SPACE.value == "both":
        plan(mode, "projected"), plan(mode, "onehot")  # all mistakes before the first process
        results = both()
    else:
        from flm_jax.benchmark.measure import measure

        results = {SPACE.value: measure(plan(mode, SPACE.value))}
        if not JSON.value:
            print(report(results))
    if SPACE.value == "both":
        print(report(results))
    if JSON.value:
        print(json.dumps(results if SPACE.value == "both" else results[SPACE.value]))
    return 0


def plan(mode: str, space: str) -> Any:
    """What to measure in one space; UserError for anything wrong with it."""
    from flm_jax.benchmark.measure import Plan
    from flm_jax.losses import LOSSES
    from flm_jax.samplers import SAMPLERS

    config = CONFIG.value
    change = dataclasses.replace
    batch, length = BATCH.value or config.train.batch_size, LENGTH.value or config.data.length
    config = change(
        config,
        space=space,
        train=change(config.train, batch_size=batch),
        data=change(config.data, length=length),
        sampler=change(config.sampler, steps=(SAMPLING_STEPS.value,)),
    )
    if LOSS.value:
        config = change(config, loss=change(config.loss, name=LOSS.value, options={}))
    if space == "onehot":
        config = change(config, model=change(config.model, head_chunk=batch * length))
    row = LOSSES.get(config.loss.name)
    if row is not None:  # networks beside the student are made here, at random
        two_times = getattr(row, "needs_two_times", False)
        config = change(config, init_from="", model=change(config.model, two_times=two_times))
        teacher = bool(config_lib.build(LOSSES, config.loss.name, config.loss.options, "loss")
                       .needs_teacher)  # fmt: skip
        config = change(config, teacher="random" if teacher else "")
    config_lib.validate(config, {"loss": LOSSES, "sampler": SAMPLERS})
    return Plan(mode, config, vocabulary(config), SAMPLING_STEPS.value, REPEATS.value)


def vocabulary(config: config_lib.Config) -> int:
    """--vocab, or the size that the config's tokenizer has."""
    options = config.tokenizer.options
    size = VOCAB.value or options.get("vocab_size") or VOCABULARIES.get(config.tokenizer.name)
    if not size:
        raise UserError(
            f"the vocabulary of the tokenizer {config.tokenizer.name!r} is not known before it has "
            "seen its text; give --vocab=SIZE"
        )
    return int(size)


def both() -> dict[str, Any]:
    """The two spaces in processes of their own, in turn; medians over them, and the ratios."""
    found: dict[str, list[dict]] = {"projected": [], "onehot": []}
    total = len(found) * ROUNDS.value
    with metrics.bar(total=total, desc="benchmark", unit="process") as bar:
        for _ in range(ROUNDS.value):
            for space, rows in found.items():
                rows.append(child(space))
                bar.update(1)
    results: dict[str, Any] = {space: middle(rows) for space, rows in found.items()}
    ours, theirs = results["projected"], results["onehot"]
    for ratio, key in (
        ("speed_ratio", "tokens_per_second"),
        ("memory_ratio", "peak_memory_bytes"),
    ):
        results[ratio] = ours[key] / theirs[key]
    return results


def child(space: str) -> dict:
    """The numbers of one space, measured by this command in a process of its own."""
    # A flag that is given twice has its last value.
    command = [sys.executable, "-m", "flm_jax.benchmark", *sys.argv[1:]]
    done = subprocess.run(
        [*command, f"--space={space}", "--json"], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise UserError(
            f"the process of space {space} ended with exit code {done.returncode} (above is what "
            "it said; -9 means that memory ran out): try a smaller --batch"
        )
    return json.loads(done.stdout.splitlines()[-1])


def middle(rows: list[dict]) -> dict:
    """One row of several: the median of every number, the largest memory."""
    merged = dict(rows[0])
    for key, value in rows[0].items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            merged[key] = statistics.median(row[key] for row in rows)
    merged["peak_memory_bytes"] = max(row["peak_memory_bytes"] for row in rows)
    return merged


def report(results: dict[str, Any]) -> str:
    """The numbers for people."""
    lines = []
    for space in ("projected", "onehot"):
        row = results.get(space)
        if row is None:
            continue
        kind = "the device's peak" if row["peak_rate"] else "the matrix rate measured here"
        lines.append(
            f"{space:10s} {row['tokens_per_second']:12,.0f} tokens/s  {row['ms_per_step']:10,.1f} "
            f"ms (spread {row['ms_spread']:,.1f})  peak {row['peak_memory_bytes'] / 2**30:.2f} GiB"
            f"  {100 * row['utilisation']:.0f} % of {kind}  compiled in {row['compile_s']:.0f} s"
        )
    if "speed_ratio" in results:
        lines.append(
            f"projected / onehot: {results['speed_ratio']:.2f} x the speed, "
            f"{results['memory_ratio']:.3f} x the memory"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    config_lib.run_main(main)
