"""Train a flow language model; an interrupted run goes on where it was.

    flm train --config=configs/quickstart.py --workdir=runs/q
    flm train --config=configs/quickstart.py --workdir=runs/q2 --config.optim.learning_rate=1e-3
    flm train --workdir=runs/q                             # goes on with its own config
    flm train --workdir=runs/q --config.train.steps=5000   # and further than before

Ctrl-C, SIGTERM, a closed terminal (SIGHUP) or SIGUSR1 saves a checkpoint and ends; the same command
continues. Results, samples and report.html are in the workdir.

On several machines the same command runs on each; see launch/README.md. With --distributed (or
under Slurm, on a TPU slice, with JAX_COORDINATOR_ADDRESS) the processes find each other. --workdir
must then be on storage that all of them share, or in a bucket: --workdir=gs://BUCKET/FOLDER or
s3://BUCKET/FOLDER, which needs no such storage (docs/operations.md).
"""

import dataclasses
import pathlib

from flm_jax import config as config_lib
from flm_jax.cli.command import Command
from flm_jax.cli.options import ConfigFile, Configured
from flm_jax.cli.processes import Joining
from flm_jax.errors import UserError
from flm_jax.host import folders, windows
from flm_jax.knobs import knob


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Joining, Configured):
    workdir: str = knob(
        "", "folder of this run, or gs:// or s3://BUCKET/FOLDER: checkpoints, logs, report"
    )


def run(options: Options) -> int:
    windows.refuse("training")
    workdir = _workdir(options.workdir) if options.workdir else None
    config = _config(options.config, workdir)
    if workdir is None:
        raise UserError("--workdir=DIR is missing; try --workdir=runs/quickstart")
    from flm_jax import experiment

    config_lib.validate(config, experiment.tables())
    with options.session(config.train.watchdog_seconds):
        from flm_jax.training import loop

        return loop.train(config, workdir)


def _workdir(given: str) -> str | pathlib.Path:
    if "://" not in given:
        return folders.expanded(given)
    from flm_jax.checkpoint import Address

    return Address(given).url


def _config(file: ConfigFile, workdir: str | pathlib.Path | None) -> config_lib.Config:
    """The config of the file, or the one that the run began with; with what is given to change."""
    if file.path is not None or workdir is None:
        return file.value
    if isinstance(workdir, str):
        from flm_jax.checkpoint import fetched

        workdir = fetched(workdir)
    stored = workdir / "config.json"
    if not stored.is_file():
        raise UserError(
            f"--config=FILE is missing, and {workdir} holds no config.json of a run to go on with; "
            "try --config=configs/quickstart.py"
        )
    return config_lib.load(str(stored), file.overrides)


COMMAND = Command(__doc__, Options, run, needs_reader=False)
