"""flm parity DIRECTORY: do our numbers agree with the official ones?"""

import argparse
import collections
import contextlib
import gc
import json
import os
import pathlib
import sys
import time
from importlib import metadata

from flm_jax.cli import flags as command_line
from flm_jax.errors import UserError
from flm_jax.host import folders

# The time goes into compiling many small programs. Must be set before jax is imported; an XLA that
# does not know a flag would abort, so the others are for the versions they were tried with.
FLAGS = "--xla_backend_optimization_level=0"
if metadata.version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    FLAGS += " --xla_llvm_disable_expensive_passes=true"
os.environ.setdefault("XLA_FLAGS", FLAGS)
# Programs are kept, so that a second run only compiles what changed since. A cache that the caller
# has chosen, or switched off (JAX_ENABLE_COMPILATION_CACHE=false), stays as it is.
with contextlib.suppress(UserError):  # without a home nothing is kept
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folders.caches() / "flm_jax/parity"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # a tenth of the time, no result
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # more of them would only wait, at full speed

from flm_jax.host import files, progress  # noqa: E402
from flm_jax.lab.parity import goldens, runner  # noqa: E402
from flm_jax.lab.parity.checks import HEADER, Row  # noqa: E402

# Tracing makes millions of small objects; looking for cycles among them costs a tenth of the time.
gc.freeze()
gc.set_threshold(50_000, 20, 100)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="flm parity",
        description="Repeats the recorded runs of the official code through this one and compares. "
        "Exit code 0: every case ran and passed. "
        "Compiled programs are kept in flm_jax/parity of $XDG_CACHE_HOME or ~/.cache.",
    )
    parser.add_argument("directory", help="a recorded set: manifest.json and the files it lists")
    parser.add_argument("--only", default="", metavar="PATTERN", help="cases with this in the name")
    parser.add_argument("--json", default="", metavar="FILE", help="write all rows there, too")
    parser.add_argument(
        "--jobs", type=int, default=0, metavar="N", help="processes (0 = one per core, at most 4)"
    )
    parser.add_argument(
        "--whole",
        action="store_true",
        help="compile each loss and sampler as one program, not in pieces that cases share: slower",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the set, prints a line per comparison and a summary; the exit code."""
    options = parse(arguments)
    start = time.perf_counter()
    try:
        count = sum(runner.chosen(c.name, options.only) for c in goldens.read(options.directory))
        if options.json:
            destination(options.json)
        with progress.bar(total=count, desc="parity", unit="case", delay=2) as bar:
            jobs = options.jobs if options.jobs > 0 else min(4, os.cpu_count() or 1)
            rows = runner.run(
                options.directory, options.only, lambda row: show(row, bar), jobs, options.whole
            )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    seconds = time.perf_counter() - start
    try:  # saved before it is shown, and shown if it cannot be saved
        if options.json:
            write(options.json, options.directory, rows, seconds)
    finally:
        print("\n" + summary(rows, seconds))
    return 0 if all(row.ok for row in rows) else 1


def destination(name: str) -> None:
    """UserError if the results cannot be written there: better now than after the run."""
    path = pathlib.Path(name).expanduser()
    if os.path.isdir(path) or not os.path.isdir(path.absolute().parent):
        raise UserError(f"--json={name} cannot be written; give a file in a folder that exists")
    files.check_writable(path)


def show(row: Row, bar) -> None:
    """Prints one comparison; the bar counts cases."""
    seen = bar.__dict__.setdefault("cases_seen", [])
    if row.case not in seen:
        if not seen:
            print(HEADER)
        seen.append(row.case)
        bar.update(1)
    print(row.line(), flush=True)


def summary(rows: list[Row], seconds: float) -> str:
    """Cases and comparisons that passed, and the cases that did not with their first reason."""
    failed: dict[str, list[Row]] = collections.defaultdict(list)
    for row in rows:
        if not row.ok:
            failed[row.case].append(row)
    cases = list(dict.fromkeys(row.case for row in rows))
    good = sum(row.ok for row in rows)
    lines = []
    for case, bad in failed.items():
        why = bad[0].reason or f"{len(bad)} beyond tolerance, the first: {bad[0].quantity}"
        lines.append(f"FAIL {case}: {why}")
    verdict = "FAIL" if failed else "ok"
    lines.append(
        f"{verdict}: {len(cases) - len(failed)} of {len(cases)} cases passed, "
        f"{good} of {len(rows)} comparisons, {seconds:.0f} s"
    )
    return "\n".join(lines)


def write(name: str, directory: str, rows: list[Row], seconds: float) -> None:
    """All rows as JSON; numbers that are not finite become text."""
    cases = {row.case for row in rows}
    failed = {row.case for row in rows if not row.ok}
    content = {
        "directory": str(directory),
        "ok": not failed,
        "cases": len(cases),
        "cases_failed": sorted(failed),
        "seconds": round(seconds, 1),
        "rows": [row.plain() for row in rows],
    }
    files.write_atomically(pathlib.Path(name).expanduser(), json.dumps(content, indent=1))


if __name__ == "__main__":
    command_line.exit_with(main, needs_reader=False)
