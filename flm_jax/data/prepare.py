"""Tokenises and packs the text of a config once, before training: fast, in parts, resumable.

    flm prepare --config=configs/text_files.py --data_dir=/data/flm \
        --config.data.options.path='/corpus/*.jsonl.gz' --workers=16

Ctrl-C or a kill loses one shard at most; the same command goes on. What is there already is left
alone. Training finds the result with --config.data.cache_dir=/data/flm, or without it if --data_dir
was left out. --verify hashes what was prepared, to see whether a byte of it has changed.
"""

import os
import sys
import time

from absl import flags

from flm_jax import config, data, errors
from flm_jax.cli import flags as command_line
from flm_jax.data import rows as rows_lib
from flm_jax.host import windows

CONFIG = command_line.config_flag()
DATA_DIR = flags.DEFINE_string("data_dir", "", "folder for the rows (default: data.cache_dir)")
WORKERS = flags.DEFINE_integer(
    "workers", None, "processes that tokenise, 0 = none besides this one (default: one per core)"
)
SPLITS = flags.DEFINE_list("splits", "train,valid", "what to prepare")
VERIFY = flags.DEFINE_bool("verify", False, "hash all shards that are there")


def run(plan: data.Plan, processes: int, verify: bool = False) -> None:
    """Prepares every split of `plan`, and says what it did.

    Raises:
      UserError: see `data.prepare_split`; with `verify`, damaged rows.
    """
    tokenizer = plan.tokenizer
    print(f"tokenizer {tokenizer.name}, {tokenizer.vocab_size:,} ids, {tokenizer.fingerprint[:12]}")
    for split, order in plan.orders.items():
        start = time.monotonic()
        rows, made = data.prepare_split(order, plan.folder, processes)
        spent = time.monotonic() - start
        if verify:
            rows_lib.verify(rows)
        size = sum(shard["bytes"] for shard in rows.manifest["shards"])
        outcome = "already prepared, nothing to do"
        if made:
            rate = rows.manifest["text_tokens"] / max(spent, 1e-6)
            outcome = f"prepared in {spent:.1f} s ({rate:,.0f} tokens/s)"
        checked = ", every byte checked" if verify else ""
        print(
            f"{split}: {outcome}{checked}; {len(rows):,} rows of {rows.length}, "
            f"{rows.tokens:,} tokens, {rows.manifest['documents']:,} documents, "
            f"{_shards(rows)}, {size / 1e6:,.1f} MB\n  {rows.path}"
        )
    print(f"largest process: {_peak_memory() / 1e6:,.0f} MB")


def main(argv: list[str]) -> None:
    """Command line."""
    if argv[1:]:
        raise errors.UserError(f"unexpected word {argv[1]!r}; flags start with --")
    windows.refuse("preparing a corpus")
    processes = _cores() if WORKERS.value is None else WORKERS.value
    if processes < 0:
        raise errors.UserError(f"--workers is {processes}, but must be 0 or more")
    settings = config.to_dict(CONFIG.value)
    section = settings["data"]
    if DATA_DIR.value:
        section["cache_dir"] = DATA_DIR.value
    splits = [split.strip() for split in SPLITS.value if split.strip()]
    run(data.plan(section, settings["tokenizer"], splits=splits), processes, VERIFY.value)


def _shards(rows: rows_lib.Rows) -> str:
    count = len(rows.manifest["shards"])
    return "1 shard" if count == 1 else f"{count:,} shards"


def _peak_memory() -> int:
    """Bytes: the most that this process or one it started has held."""
    import resource

    who = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    peak = max(resource.getrusage(one).ru_maxrss for one in who)
    return peak if sys.platform == "darwin" else 1024 * peak


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


if __name__ == "__main__":
    command_line.run_main(main, needs_reader=False)
