"""Write report.html of a training run, finished or not.

    flm report --workdir=runs/q
    flm report --workdir=runs/q --open
    flm report --workdir=gs://BUCKET/RUN

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
        "the folder that the run writes, or gs:// or s3://BUCKET/FOLDER",
        needed="--workdir=DIR is missing; give the folder of a run, such as --workdir=runs/q",
    )
    open: bool = knob(False, "open the report in the browser")


def run(options: Options) -> None:
    from flm_jax import report

    if "://" in options.workdir:
        from flm_jax.checkpoint import fetched, put

        path = report.write(fetched(options.workdir))
        print(path)  # whether or not the bucket may be written to
        print(put(options.workdir, path))
    else:
        path = report.write(options.workdir)
        print(path)
    if options.open:
        webbrowser.open(path.resolve().as_uri())


COMMAND = Command(__doc__, Options, run, needs_reader=False)
