r"""Speed and memory of the training step or of sampling, on synthetic tokens.

    flm benchmark train --config=configs/bench_cpu.py --space=both --json
    flm benchmark sample --config=configs/bench_cpu.py --space=projected
    flm benchmark sample --config=configs/bench_cpu.py --sampler=flow_map
    flm benchmark train --config=configs/owt.py --batch=16
    flm benchmark sweep --config=configs/bench_cpu.py --batch=8 --output=DIR \
        --vary_batch=2,4,16 --vary_length=32,64,256 --vary_vocab=2000,8000,120000 \
        --vary_width=64,128,512
    flm benchmark table --config=configs/lm1b.py --config.model.dtype=bfloat16 \
        --shapes=128x30522,1024x50258 --output=DIR
    flm benchmark profile --config=configs/bench_cpu.py --output=DIR
    flm benchmark latency --config=configs/quickstart.py --methods=flm,fmlm,mdlm,duo,ar \
        --evaluations=1,2,4,8,32 --length=128,1024
    flm benchmark latency --checkpoint=runs/flm,runs/fmlm,runs/ar --evaluations=1,8,32

"both" runs the two state spaces in child processes, in turn (the peak memory of a process never
falls; a profile does without), and prints the ratios. "onehot" is the official cost: states over
the vocabulary, and a head that sees all tokens at once and is differentiated as it stands. "sweep"
varies B, L, V and D one at a time around a base and writes a table and a log-log plot; "table"
looks for the largest batch that fits at given shapes, as an accelerator's table needs; "profile"
tells where the time of a step goes, by kind of work. These measure --of=train or sample. A loss
(--loss) or a sampler (--sampler) gets the network that it is made for. "latency" times every method
at every number of evaluations: one sequence, and the batch with the most sequences in a second. Its
methods are stages of the config, on its backbone, with random weights, which take as long as
trained ones; or runs. With --json the last line printed is JSON. Neither grain nor orbax is needed,
except to read runs.
"""

import dataclasses
import json
import pathlib
from typing import Any

from flm_jax.cli.command import Command
from flm_jax.cli.options import Configured, words_of
from flm_jax.errors import UserError
from flm_jax.knobs import knob
from flm_jax.lab.benchmark import LATENCY, MANY, ONE, PROFILE
from flm_jax.lab.benchmark.asked import SPACES, Asked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Asked, Configured):
    what: str = knob(
        "",
        "what to measure",
        word=True,
        choices=(*ONE, *MANY, PROFILE, LATENCY),
        needed="say what to measure, train, sample or data (or sweep, table or profile of these, "
        "or latency)",
    )
    space: str = knob("both", "state space", choices=(*SPACES, "both"))
    rounds: int = knob(1, "processes per space, in turn", at_least=1)
    of: str = knob("train", "what sweep, table and profile measure", choices=ONE)
    vary_batch: tuple[int, ...] = knob((), "sweep: batches beside the base", at_least=1)
    vary_length: tuple[int, ...] = knob((), "sweep: lengths beside the base", at_least=1)
    vary_vocab: tuple[int, ...] = knob((), "sweep: vocabularies beside the base", at_least=1)
    vary_width: tuple[int, ...] = knob((), "sweep: widths beside the base", at_least=1)
    shapes: tuple[str, ...] = knob(("128x30522", "1024x50258"), "table: LENGTHxVOCABULARY ...")
    max_batch: int = knob(4096, "table, latency: no larger batch", at_least=1)
    checkpoint: tuple[str, ...] = knob(
        (), "latency: workdirs or official files, in place of --config"
    )
    methods: tuple[str, ...] = knob(
        (), "latency: flm, fmlm, or stages of the config; some if omitted"
    )
    evaluations: tuple[int, ...] = knob(
        (1, 2, 4, 8, 32), "latency: network evaluations", at_least=1, nonempty=True
    )
    output: str = knob("", "sweep, table, profile (latency if wanted): folder of the results")
    json: bool = knob(False, "print the numbers as JSON in the last line")

    @property
    def spaces(self) -> tuple[str, ...]:
        return SPACES if self.space == "both" else (self.space,)

    def words(self) -> list[str]:
        """The words that measure the same in another process."""
        return words_of(dataclasses.replace(self, what="", space="both", rounds=1, json=False))


def run(options: Options) -> None:
    if options.what in ONE:
        results = _one(options)
    elif options.what == LATENCY:
        results = _latency(options)
    elif not options.output:
        raise UserError(f"{options.what} writes files; say where with --output=FOLDER")
    elif options.what in MANY:
        results = _many(options)
    else:
        results = _profile(options)
    if options.json:
        print(json.dumps(results))


def _one(options: Options) -> dict[str, Any]:
    from flm_jax.lab.benchmark import processes

    # All mistakes before the first process.
    plans = [options.plan(options.config.value, options.what, space) for space in options.spaces]
    if options.space == "both":
        results = processes.both(options.what, options.words(), options.rounds)
        print(processes.report(results))
        return results
    from flm_jax.lab.benchmark.measure import measure

    found = measure(plans[0])
    if not options.json:
        print(processes.report({options.space: found}))
    return found


def _many(options: Options) -> list[dict[str, Any]]:
    """A sweep or a table: one process for every shape and space, results in --output."""
    from flm_jax.lab.benchmark import processes, sweep

    folder = pathlib.Path(options.output).expanduser()
    shapes = [_shape(text) for text in options.shapes]
    config = options.config.value
    base = [options.plan(config, options.of, space) for space in options.spaces][0]
    sweep.check(folder, options.what)
    words = options.words()

    def measure(space: str, point: sweep.Point) -> dict[str, Any] | None:
        return processes.attempt(options.of, space, words, point)

    model = base.config.model
    start = sweep.Point(
        base.config.train.batch_size, base.config.data.length, base.vocab_size, model.width
    )
    if options.what == "sweep":
        axes = {
            "batch": options.vary_batch,
            "length": options.vary_length,
            "vocab": options.vary_vocab,
            "width": options.vary_width,
        }
        rows = sweep.sweep(measure, start, axes, options.spaces)
    else:
        rows = sweep.largest(measure, shapes, start, options.max_batch, options.spaces)
    sweep.write(folder, options.what, rows, plot=options.what == "sweep")
    print(sweep.markdown(rows), end="")
    print(f"written to {folder}")
    return rows


def _profile(options: Options) -> dict[str, dict[str, float]]:
    """Seconds by kind of work, and the longest operations, with JAX's traces, in --output."""
    from flm_jax.lab.benchmark import profile, sweep

    folder = pathlib.Path(options.output).expanduser()
    config = options.config.value
    plans = {space: options.plan(config, options.of, space) for space in options.spaces}
    profile.check_devices()
    sweep.check(folder, PROFILE)  # makes the folder
    kinds, text = profile.of_plans(plans, folder)
    print(f"{text}\nwritten to {folder}, with traces for TensorBoard or Perfetto")
    return kinds


def _latency(options: Options) -> list[dict[str, Any]]:
    """Milliseconds of runs, or of the stages of a config, one after the other."""
    from flm_jax.host import memory, numerics, windows
    from flm_jax.lab.benchmark import latencies, sweep
    from flm_jax.lab.compare import latency

    windows.refuse("the benchmark")
    folder = pathlib.Path(options.output).expanduser() if options.output else None
    if folder:
        sweep.check(folder, LATENCY)
    if bool(options.checkpoint) == options.config.given:
        raise UserError("latency is that of runs or of a config; give --checkpoint or --config")
    if options.checkpoint and (options.methods or options.vocab):
        raise UserError("runs know what they are; omit --methods and --vocab beside --checkpoint")
    memory.keep_small()  # as training does
    numerics.check_devices()
    if options.checkpoint:
        models = latencies.runs(options.checkpoint)
    else:
        path = options.config.path or options.config.value.stage  # the latter says what is missing
        found = latencies.configs(path, options.config.overrides, options.methods)
        models = {name: latencies.untrained(one, options.vocab) for name, one in found.items()}

    def keep(rows: list[latencies.Row]) -> None:
        if folder:
            latencies.write(folder, rows)

    rows = latencies.table(
        models, options.evaluations, options.length,
        repeats=options.repeats or latency.REPEATS, max_batch=options.max_batch, each=keep,
    )  # fmt: skip
    print(latencies.markdown(rows), end="")
    print(f"{rows[0].found.device}, one device, products in {rows[0].found.dtype}")
    if not options.checkpoint:
        print("random weights")
    return [row.json() for row in rows]


def _shape(text: str) -> tuple[int, int]:
    """(L, V) of "128x30522"."""
    length, _, vocab = text.partition("x")
    if not (length.isdecimal() and vocab.isdecimal() and int(length) and int(vocab)):
        raise UserError(f"--shapes: {text!r} is not LENGTHxVOCABULARY, such as 128x30522")
    return int(length), int(vocab)


COMMAND = Command(__doc__, Options, run)
