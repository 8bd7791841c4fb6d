r"""Tokenise and pack the text of a config before training; resumable.

    flm prepare --config=configs/lm1b.py --workers=16
    flm prepare --config=configs/text_files.py --data_dir=/data/flm \
        --config.data.options.path='/corpus/*.jsonl.gz' --workers=16

Ctrl-C or a kill loses one shard at most; the same command goes on. What is there already is left
alone. Training finds the result with --config.data.cache_dir=/data/flm, or without it if --data_dir
was left out. --verify hashes what was prepared, to see whether a byte of it has changed.
"""

import dataclasses

from flm_jax import config as config_lib
from flm_jax.cli.command import Command
from flm_jax.cli.options import Configured
from flm_jax.host import windows
from flm_jax.knobs import knob


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Configured):
    data_dir: str = knob("", "folder for the rows (default: data.cache_dir)")
    workers: int | None = knob(
        None,
        "processes that tokenise, 0 = none besides this one (default: one per core)",
        at_least=0,
    )
    splits: tuple[str, ...] = knob(("train", "valid"), "what to prepare", nonempty=True)
    verify: bool = knob(False, "hash all shards that are there")


def run(options: Options) -> None:
    windows.refuse("preparing a corpus")
    settings = config_lib.to_dict(options.config.value)
    from flm_jax import data
    from flm_jax.data import prepare

    section = settings["data"]
    if options.data_dir:
        section["cache_dir"] = options.data_dir
    plan = data.plan(section, settings["tokenizer"], splits=options.splits)
    prepare.run(plan, options.workers, options.verify)


COMMAND = Command(__doc__, Options, run, needs_reader=False)
