"""The text of a config tokenised and packed before training, with a word about what was done."""

import os
import sys
import time

from flm_jax import data
from flm_jax.data import rows as rows_lib


def run(plan: data.Plan, processes: int | None = None, verify: bool = False) -> None:
    """Prepares every split of `plan`, and says what it did; processes: None is one per core.

    Raises:
      UserError: see `data.prepare_split`; with `verify`, damaged rows.
    """
    processes = _cores() if processes is None else processes
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
