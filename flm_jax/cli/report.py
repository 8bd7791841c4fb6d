"""Write report.html of a training run, finished or not.

    flm report --workdir=runs/q
    flm report --workdir=runs/q --open

The path of the page is printed.
"""

import dataclasses
import webbrowser

from flm_jax.cli.command import Command
from flm_jax.knobs import knob


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    workdir: str = knob(
        "",
        "the folder that the run writes",
        needed="--workdir=DIR is missing; give the folder of a run, such as --workdir=runs/q",
    )
    open: bool = knob(False, "open the report in the browser")


def run(options: Options) -> None:
    from flm_jax import report

    path = report.write(options.workdir)
    print(path)
    if options.open:
        webbrowser.open(path.resolve().as_uri())


COMMAND = Command(__doc__, Options, run, needs_reader=False)
