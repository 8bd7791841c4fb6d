r"""Tokenise and pack the text of a config before training; resumable.

    flm prepare --config=configs/lm1b.py --workers=16
    flm prepare --truth=stories260K.bin --rows=256000 --data_dir=/data/stories
    flm prepare --config=configs/text_files.py --data_dir=/data/flm \
        --config.data.options.path='/corpus/*.jsonl.gz' --workers=16

Ctrl-C or a kill loses one shard at most; the same command goes on. What is there already is left
alone. Training finds the result with --config.data.cache_dir=/data/flm, or without it if --data_dir
was left out. --verify hashes what was prepared, to see whether a byte of it has changed.

With --truth there is no text and no config: rows are drawn from that model, so that the likelihood
of whatever is trained on them is known (configs/stories.py).
"""

import dataclasses

from flm_jax import config as config_lib
from flm_jax.cli.command import Command
from flm_jax.cli.options import Configured
from flm_jax.errors import UserError
from flm_jax.host import folders, windows
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
    truth: str = knob(
        "",
        "draw rows from this model: a workdir of an autoregressive run, GPT-2 folder, Llama file",
    )
    rows: int = knob(256_000, "rows of the split train that are drawn", at_least=1)
    valid_rows: int = knob(4_096, "rows of every other split that are drawn", at_least=1)
    length: int = knob(65, "tokens of a drawn row, BOS included", at_least=3)
    seed: int = knob(0, "of the drawn rows", at_least=0, below=2**32)


def run(options: Options) -> None:
    windows.refuse("preparing a corpus")
    if options.truth:
        _draw(options)
        return
    settings = config_lib.to_dict(options.config.value)
    from flm_jax import data
    from flm_jax.data import prepare

    section = settings["data"]
    if options.data_dir:
        section["cache_dir"] = options.data_dir
    plan = data.plan(section, settings["tokenizer"], splits=options.splits)
    prepare.run(plan, options.workers, options.verify)


def _draw(options: Options) -> None:
    if options.config.given:
        raise UserError(
            f"--truth={options.truth} draws rows from a model, --config tokenises text; omit one"
        )
    from flm_jax.inference.truths import load_truth
    from flm_jax.lab.truth import rows as truth_rows

    truth = load_truth(options.truth)
    place = str(folders.expanded(options.truth).absolute())
    for split in options.splits:
        count = options.rows if split == "train" else options.valid_rows
        rows, made = truth_rows.write(
            truth, place, options.data_dir, split, count, options.length, options.seed
        )
        print(
            f"{split}: {'drawn' if made else 'already there'}; {len(rows):,} rows of {rows.length} "
            f"tokens of {truth.tokenizer.vocab_size:,}, from {truth.name}\n  {rows.path}"
        )


COMMAND = Command(__doc__, Options, run, needs_reader=False)
