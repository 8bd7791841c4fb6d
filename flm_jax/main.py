"""Train a flow language model; resumes by itself when the workdir holds a checkpoint.

    python -m flm_jax.main --config=configs/quickstart.py --workdir=runs/q
    python -m flm_jax.main --config=configs/quickstart.py --workdir=runs/q2 \
        --config.optim.learning_rate=1e-3 --config.train.steps=500

Ctrl-C, SIGTERM, a closed terminal (SIGHUP) or SIGUSR1 saves a checkpoint and ends; the same command
continues. Results, samples and report.html are in the workdir.

On several machines the same command runs on each; see launch/README.md. With --distributed (or
under Slurm, on a TPU slice, with JAX_COORDINATOR_ADDRESS) the processes find each other. --workdir
must then be on storage that all of them share.
"""

from absl import flags

from flm_jax import config as config_lib
from flm_jax.cli import flags as command_line
from flm_jax.errors import UserError
from flm_jax.host import folders, windows

CONFIG = command_line.config_flag()
DISTRIBUTED = flags.DEFINE_boolean(
    "distributed", None, "this process is one of several (left out: found out)"
)
COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0; needs the next two")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "processes in all")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "which one this is, from 0")
JOIN_SECONDS = flags.DEFINE_float(
    "join_seconds", 300.0, "how long to wait for the others before ending with 75", lower_bound=1.0
)
WORKDIR = flags.DEFINE_string("workdir", None, "folder of this run: checkpoints, logs, report")


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; options are written --name=value")
    windows.refuse("training")
    config = CONFIG.value
    if not WORKDIR.value:
        raise UserError("--workdir=DIR is missing; try --workdir=runs/quickstart")
    if "://" in WORKDIR.value:
        direct = WORKDIR.value.startswith(("gs://", "s3://"))
        raise UserError(
            f"--workdir={WORKDIR.value} is no local or mounted folder; choose one, and have its "
            f"checkpoints {'written' if direct else 'copied'} with "
            f"--config.train.{'checkpoints' if direct else 'mirror'}={WORKDIR.value}"
        )
    from flm_jax import experiment
    from flm_jax.host import distributed

    config_lib.validate(config, experiment.tables())
    cluster = distributed.detect(
        DISTRIBUTED.value, COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value
    )
    with distributed.session(cluster, config.train.watchdog_seconds, JOIN_SECONDS.value):
        from flm_jax.training import loop

        return loop.train(config, folders.expanded(WORKDIR.value))


if __name__ == "__main__":
    command_line.run_main(main, needs_reader=False)
