r"""Train methods on equal terms, sample them at every setting, and measure them.

    flm compare --data=corpus.txt --methods=ar,mdlm,flm --budget_minutes=30
    flm compare --config=configs/compare.py:addition --workdir=runs/addition
    flm compare runs/mine runs/theirs --output=runs/both

Every method gets the same minutes, on the same network, with the same optimizer, batches and
learning rates to choose from (docs/comparing.md). A method that starts from another one (sdtt from
mdlm, dcd from duo, fmlm from flm, any_order from flm_given) shares its minutes with it. Minutes
become steps once, by the time of a training step on this machine, and stand in WORKDIR/plan.json.

First comes the plan: every training, its steps and minutes, and the disk that it takes. --dry_run
ends there. Then learning rates are tried, the methods trained (WORKDIR/runs), and samples drawn at
every number of evaluations and every knob setting; at the best of them more are drawn, of all
seeds. Results: WORKDIR/report.html, results.json, tables. Whatever is stopped goes on when the same
command is given again, and what is finished is not done again; other seeds, methods and numbers of
samples may be added. With runs (or official checkpoints) as words, these are compared and nothing
is trained.

Text is --data: a file, a folder or a glob; a folder of rows that flm prepare made; or a data set
by name, its options as --config.data.options.NAME=VALUE. On several machines the same command runs
on each; see launch/README.md.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from flm_jax.cli.command import Command
from flm_jax.cli.options import Configured
from flm_jax.cli.processes import Joining
from flm_jax.errors import UserError
from flm_jax.host import folders, windows
from flm_jax.knobs import knob

if TYPE_CHECKING:
    from flm_jax.lab.compare.asked import Asked, Drawing

CONFIG = "configs/compare.py"
WORKDIR = "runs/compare"
BUDGET = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Joining, Configured):
    runs: tuple[str, ...] = knob((), "runs or checkpoints to compare; none: train", word=True)
    data: str = knob("", "text: files, a folder of prepared rows, or a data set by name")
    methods: tuple[str, ...] = knob(
        ("ar", "mdlm", "sdtt", "duo", "dcd", "flm", "fmlm", "any_order"),
        "methods to train; also flm_given, duo_curriculum",
    )
    seeds: tuple[int, ...] | None = knob(
        None, "seeds of training (default: 1)", at_least=0, below=2**32
    )
    budget_minutes: float | None = knob(
        None,
        f"minutes of training for a method (default: {BUDGET:g})",
        above=0,
        below=math.inf,
    )
    tune: bool | None = knob(None, "try learning rates, for a tenth of the steps (default: yes)")
    learning_rates: tuple[float, ...] = knob(
        (), "those to try (default: a third, once and three times the config's)", above=0
    )
    evaluations: tuple[int, ...] | None = knob(
        None, "numbers of network evaluations (default: 1,2,4,8,32)", at_least=1
    )
    num_samples: int = knob(512, "samples of every run at the best settings", at_least=1)
    pilot_samples: int = knob(
        256, "samples of the first seed at every setting, to find those", at_least=1
    )
    points: int | None = knob(None, "knob settings of a method, at most (default: 6)", at_least=1)
    judges: tuple[str, ...] = knob(
        (), "who judges besides: GPT-2 folders, Llama files, autoregressive runs"
    )
    truth: str | None = knob(None, "the model that the text was drawn from, if it has moved")
    workdir: str = knob(WORKDIR, "folder of the comparison")
    output: str = knob("", "folder for the report on given runs")
    dry_run: bool = knob(False, "only show the plan")
    time: bool = knob(False, "with --dry_run: time the training steps, so that it is exact")


_WITH_RUNS = {field.name for field in dataclasses.fields(Joining)} | {
    *("data", "evaluations", "num_samples", "pilot_samples", "points", "judges", "truth", "output"),
}


def run(options: Options) -> None:
    windows.refuse("comparing methods")
    if options.runs:
        return _of_runs(options)
    if options.output:
        raise UserError(
            f"--output={options.output} is for runs that are there (flm compare RUN RUN); where "
            "methods are trained all is in --workdir"
        )
    asked = asked_of(options)
    from flm_jax.lab.compare import driver

    with options.session(asked.base.train.watchdog_seconds):
        driver.compare(
            asked,
            folders.local("--workdir", options.workdir),
            dry_run=options.dry_run,
            time=options.time,
        )


def asked_of(options: Options) -> "Asked":
    """What the words ask for, with the defaults of a preset."""
    from flm_jax.lab.compare import asked

    path = options.config.path or CONFIG
    base = asked.base(path, options.config.overrides, options.data)
    found = asked.defaults(path) | given(options, "seeds", "budget_minutes", "tune")
    return asked.Asked(
        base=base,
        methods=options.methods,
        seeds=found.get("seeds", (1,)),
        budget_minutes=found.get("budget_minutes", BUDGET),
        learning_rates=asked.learning_rates(base, options.learning_rates, found.get("tune", True)),
        drawing=drawing(options, path),
        judging=asked.Judging(judges=options.judges, truth=options.truth),
    )


def drawing(options: Options, path: str = CONFIG) -> "Drawing":
    """How much is drawn."""
    from flm_jax.lab.compare import asked

    names = "evaluations", "points"
    found = asked.defaults(path) | given(options, *names)
    chosen = {name: found[name] for name in names if name in found}
    return asked.Drawing(
        num_samples=options.num_samples, pilot_samples=options.pilot_samples, **chosen
    )


def given(options: Options, *names: str) -> dict[str, Any]:
    """Those of these options that somebody gave."""
    return {name: vars(options)[name] for name in names if vars(options)[name] is not None}


def _of_runs(options: Options) -> None:
    """Compares what is there."""
    plain = Options(runs=options.runs)
    for field in dataclasses.fields(options):
        same = vars(options)[field.name] == vars(plain)[field.name]
        if not same and field.name not in _WITH_RUNS:
            raise UserError(
                f"--{field.name} is about training, but runs are given; omit one of them"
            )
    if not options.output:
        raise UserError("--output=DIR is missing: the folder for samples and report")
    if len(options.runs) == 1:
        raise UserError(
            f"{options.runs[0]} alone is nothing to compare with; give two runs, or see flm "
            "evaluate"
        )
    from flm_jax.host import memory
    from flm_jax.lab.compare import driver
    from flm_jax.lab.compare.asked import Judging

    memory.keep_small()
    judging = Judging(judges=options.judges, truth=options.truth)
    with options.session(30.0):
        driver.compare_runs(
            options.runs,
            folders.local("--output", options.output),
            drawing(options),
            judging,
            options.data,
        )


COMMAND = Command(__doc__, Options, run, needs_reader=False)
