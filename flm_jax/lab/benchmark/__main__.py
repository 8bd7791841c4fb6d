"""Speed and memory of the training step or of sampling, on synthetic tokens.

    flm benchmark train --config=configs/bench_cpu.py --space=both --json
    flm benchmark sample --config=configs/bench_cpu.py --space=projected
    flm benchmark sample --config=configs/bench_cpu.py:distill      (a flow map)
    flm benchmark train --config=configs/owt.py --batch=16
    flm benchmark sweep --config=configs/bench_cpu.py --batch=8 --output=DIR \
        --vary_batch=2,4,16 --vary_length=32,64,256 --vary_vocab=2000,8000,120000
    flm benchmark table --config=configs/lm1b.py --config.model.dtype=bfloat16 \
        --shapes=128x30522,1024x50258 --output=DIR
    flm benchmark profile --config=configs/bench_cpu.py --output=DIR

"both" runs the two state spaces in child processes, in turn (the peak memory of a process never
falls; a profile does without), and prints the ratios. "onehot" is the official cost: states over
the vocabulary, and a head that sees all tokens at once and is differentiated as it stands. "sweep"
varies B, L and V one at a time around a base and writes a table and a log-log plot; "table" looks
for the largest batch that fits at given shapes, as an accelerator's table needs; "profile" tells
where the time of a step goes, by kind of work. These measure --of=train or sample. With --json the
last line printed is JSON. Neither grain nor orbax is needed.
"""

import dataclasses
import json
import pathlib
from typing import Any

from absl import flags

from flm_jax import config as config_lib
from flm_jax.cli import flags as command_line
from flm_jax.errors import UserError
from flm_jax.host import files, progress
from flm_jax.lab.benchmark import MANY, ONE, PROFILE, processes
from flm_jax.lab.benchmark.vocabulary import vocabulary_size

SPACES = ("projected", "onehot", "both")

CONFIG = command_line.config_flag()
SPACE = flags.DEFINE_enum("space", "both", SPACES, "state space: projected, onehot or both")
BATCH = flags.DEFINE_integer("batch", 0, "sequences; 0 = train.batch_size", lower_bound=0)
LENGTH = flags.DEFINE_integer("length", 0, "tokens per sequence; 0 = data.length", lower_bound=0)
VOCAB = flags.DEFINE_integer("vocab", 0, "vocabulary; 0 = that of the tokenizer", lower_bound=0)
LOSS = flags.DEFINE_string("loss", "", "loss by name; '' = that of the config")
SAMPLING_STEPS = flags.DEFINE_integer("sampling_steps", 32, "network evaluations", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 5, "timed runs, after one that is not", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 1, "processes per space, in turn", lower_bound=1)
OF = flags.DEFINE_enum("of", "train", ONE, "what sweep, table and profile measure")
VARY = {
    axis: flags.DEFINE_list(f"vary_{axis}", [], f"sweep: values of the {axis} beside the base")
    for axis in ("batch", "length", "vocab")
}
SHAPES = flags.DEFINE_list("shapes", ["128x30522", "1024x50258"], "table: LENGTHxVOCABULARY ...")
MAX_BATCH = flags.DEFINE_integer("max_batch", 4096, "table: no larger batch", lower_bound=1)
OUTPUT = flags.DEFINE_string("output", "", "sweep, table, profile: folder of the results")
JSON = flags.DEFINE_bool("json", False, "print the numbers as JSON in the last line")


def main(argv: list[str]) -> int:
    if len(argv) != 2 or argv[1] not in (*ONE, *MANY, PROFILE):
        given = " ".join(argv[1:]) or "nothing"
        raise UserError(
            "say what to measure, train or sample (or sweep, table or profile of these), not "
            f"{given!r}"
        )
    mode = argv[1]
    if mode not in ONE and not OUTPUT.value:
        raise UserError(f"{mode} writes files; say where with --output=FOLDER")
    if mode in MANY:
        many(mode)
        return 0
    if mode == PROFILE:
        profile()
        return 0
    if SPACE.value == "both":
        plan(mode, "projected"), plan(mode, "onehot")  # all mistakes before the first process
        results = both(mode)
    else:
        from flm_jax.lab.benchmark.measure import measure

        results = {SPACE.value: measure(plan(mode, SPACE.value))}
        if not JSON.value:
            print(report(results))
    if SPACE.value == "both":
        print(report(results))
    if JSON.value:
        print(json.dumps(results if SPACE.value == "both" else results[SPACE.value]))
    return 0


def many(mode: str) -> None:
    """A sweep or a table: one process for every shape and space, results in --output."""
    from flm_jax.lab.benchmark import sweep

    folder = pathlib.Path(OUTPUT.value)
    axes = [whole_numbers(f"--vary_{axis}", flag.value) for axis, flag in VARY.items()]
    shapes = [shape(text) for text in SHAPES.value]
    spaces = chosen_spaces()
    base = [plan(OF.value, space) for space in spaces][0]
    sweep.check(folder, mode)

    def measure(space, batch, length, vocab):
        return processes.attempt(OF.value, space, batch, length, vocab)

    batch, length = base.config.train.batch_size, base.config.data.length
    if mode == "sweep":
        rows = sweep.sweep(measure, (batch, length, base.vocab_size), axes, spaces)
    else:
        rows = sweep.largest(measure, shapes, batch, MAX_BATCH.value, spaces)
    sweep.write(folder, mode, rows, plot=mode == "sweep")
    print(sweep.markdown(rows), end="")
    print(f"written to {folder}")
    if JSON.value:
        print(json.dumps(rows))


def profile() -> None:
    """Seconds by kind of work, and the longest operations, with JAX's traces, in --output."""
    import jax

    from flm_jax.lab.benchmark import profile as profiling
    from flm_jax.lab.benchmark import sweep
    from flm_jax.lab.benchmark.measure import prepare

    folder = pathlib.Path(OUTPUT.value)
    plans = {space: plan(OF.value, space) for space in chosen_spaces()}
    if jax.device_count() > 1:
        raise UserError(
            f"profile sorts work by the shapes of one device, but there are {jax.device_count()}; "
            "hide the others (JAX_PLATFORMS=cpu, CUDA_VISIBLE_DEVICES=0)"
        )
    sweep.check(folder, PROFILE)  # makes the folder

    def of(space: str) -> tuple[dict[str, float], str]:
        planned = plans[space]
        prepared, width = prepare(planned), planned.config.model.width
        known = profiling.operations(prepared.compiled.as_text() or "")
        prepared.run()  # warms up
        found, wall = profiling.profile(prepared.run, known, folder / space, planned.repeats)
        kinds = profiling.by_kind(found, known, planned.vocab_size, width)
        return kinds, profiling.report(found, known, kinds, wall)

    results = {space: of(space) for space in plans}
    text = "\n".join(f"{space}\n\n{table}" for space, (_, table) in results.items())
    files.write_atomically(folder / f"{PROFILE}.md", text)
    print(f"{text}\nwritten to {folder}, with traces for TensorBoard or Perfetto")
    if JSON.value:
        print(json.dumps({space: kinds for space, (kinds, _) in results.items()}))


def chosen_spaces() -> tuple[str, ...]:
    return SPACES[:2] if SPACE.value == "both" else (SPACE.value,)


def whole_numbers(flag: str, words: list[str]) -> list[int]:
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UserError(f"{flag}={','.join(words)} must be whole numbers above 0, with commas")
    return [int(word) for word in words]


def shape(text: str) -> tuple[int, int]:
    """(L, V) of "128x30522"."""
    length, _, vocab = text.partition("x")
    if not (length.isdecimal() and vocab.isdecimal() and int(length) and int(vocab)):
        raise UserError(f"--shapes: {text!r} is not LENGTHxVOCABULARY, such as 128x30522")
    return int(length), int(vocab)


def plan(mode: str, space: str) -> Any:
    """What to measure in one space; UserError for anything wrong with it."""
    from flm_jax.lab.benchmark.measure import Plan
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
    if LOSS.value and LOSS.value != config.loss.name:  # whose options mean nothing to it
        config = change(config, loss=change(config.loss, name=LOSS.value, options={}))
    if space == "onehot":
        config = change(config, model=change(config.model, head_chunk=batch * length))
    # Networks beside the student are made here, at random.
    needs = config_lib.build(LOSSES, config.loss.name, config.loss.options, "loss").needs
    config = change(config, init_from="", model=change(config.model, two_times=needs.two_times))
    config = change(config, teacher="random" if needs.teacher else "")
    config_lib.validate(config, {"loss": LOSSES, "sampler": SAMPLERS})
    size = vocabulary_size(config, VOCAB.value)
    return Plan(mode, config, size, SAMPLING_STEPS.value, REPEATS.value)


def both(mode: str) -> dict[str, Any]:
    """The two spaces in processes of their own, in turn; medians over them, and the ratios."""
    found: dict[str, list[dict]] = {"projected": [], "onehot": []}
    total = len(found) * ROUNDS.value
    with progress.bar(total=total, desc="benchmark", unit="process") as bar:
        for _ in range(ROUNDS.value):
            for space, rows in found.items():
                rows.append(processes.child(mode, space))
                bar.update(1)
    results: dict[str, Any] = {space: processes.middle(rows) for space, rows in found.items()}
    ours, theirs = results["projected"], results["onehot"]
    for ratio, key in (
        ("speed_ratio", "tokens_per_second"),
        ("memory_ratio", "peak_memory_bytes"),
    ):
        results[ratio] = ours[key] / theirs[key]
    return results


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
    command_line.run_main(main)
