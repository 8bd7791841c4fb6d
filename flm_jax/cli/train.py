"""Train a flow language model; an interrupted run goes on where it was.

    flm train --config=configs/quickstart.py --workdir=runs/q
    flm train --config=configs/quickstart.py --workdir=runs/q2 --config.optim.learning_rate=1e-3
    flm train --workdir=runs/q                             # goes on with its own config
    flm train --workdir=runs/q --config.train.steps=5000   # and further than before

Ctrl-C, SIGTERM, a closed terminal (SIGHUP) or SIGUSR1 saves a checkpoint and ends; the same command
continues. Results, samples and report.html are in the workdir.

On several machines the same command runs on each; see launch/README.md. With --distributed (or
under Slurm, on a TPU slice, with JAX_COORDINATOR_ADDRESS) the processes find each other. --workdir
must then be on storage that all of them share.
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
    workdir: str = knob("", "folder of this run: checkpoints, logs, report")


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


def _workdir(given: str) -> pathlib.Path:
    if "://" in given:
        direct = given.startswith(("gs://", "s3://"))
        raise UserError(
            f"--workdir={given} is not a local or mounted folder; choose one, and have its "
            f"checkpoints {'written' if direct else 'copied'} with "
            f"--config.train.{'checkpoints' if direct else 'mirror'}={given}"
        )
    return folders.expanded(given)


def _config(file: ConfigFile, workdir: pathlib.Path | None) -> config_lib.Config:
    """The config of the file, or the one that the run began with; with what is given to change."""
    if file.path is not None or workdir is None:
        return file.value
    stored = workdir / "config.json"
    if not stored.is_file():
        raise UserError(
            f"--config=FILE is missing, and {workdir} holds no config.json of a run to go on with; "
            "try --config=configs/quickstart.py"
        )
    return config_lib.load(str(stored), file.overrides)


COMMAND = Command(__doc__, Options, run, needs_reader=False)
