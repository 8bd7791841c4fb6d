"""Do our numbers agree with recorded runs of the official code?

    flm parity DIRECTORY
    flm parity DIRECTORY --only=sampler/ --json=rows.json

Exit code 0: every case ran and passed; 1: some did not. Compiled programs are kept in
flm_jax/parity of $XDG_CACHE_HOME or ~/.cache.
"""

import contextlib
import dataclasses
import os
import time

from flm_jax.cli.command import Command
from flm_jax.errors import UserError
from flm_jax.host import files, folders
from flm_jax.knobs import knob


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    directory: str = knob(
        "",
        "a recorded set: manifest.json and the files it lists",
        word=True,
        needed="give the folder of a recorded set, the one with manifest.json",
    )
    only: str = knob("", "cases with this in the name, or that it matches as a pattern")
    json: str = knob("", "write all rows to this file, too")
    jobs: int = knob(0, "processes (0 = one per core, at most 4)", at_least=0)
    whole: bool = knob(
        False,
        "compile each loss and sampler as one program, not in pieces that cases share: slower",
    )


def run(options: Options) -> int:
    _prepare()
    from flm_jax.host import progress
    from flm_jax.lab.parity import goldens, runner, summary
    from flm_jax.lab.parity.checks import HEADER, Row

    start = time.perf_counter()
    cases = goldens.read(options.directory)
    output = files.output("--json", options.json) if options.json else None
    seen: set[str] = set()

    def show(row: Row) -> None:
        """Prints one comparison; the bar counts cases."""
        if row.case not in seen:
            if not seen:
                print(HEADER)
            seen.add(row.case)
            bar.update(1)
        print(row.line(), flush=True)

    count = sum(runner.chosen(case.name, options.only) for case in cases)
    jobs = options.jobs or min(4, os.cpu_count() or 1)
    with progress.bar(total=count, desc="parity", unit="case", delay=2) as bar:
        rows = runner.run(options.directory, options.only, show, jobs, options.whole)
    seconds = time.perf_counter() - start
    try:  # saved before it is shown, and shown if it cannot be saved
        if output is not None:
            summary.write(output, options.directory, rows, seconds)
    finally:
        print("\n" + summary.summary(rows, seconds))
    return 0 if all(row.ok for row in rows) else 1


def _prepare() -> None:
    """What XLA must be told before jax is imported."""
    from importlib import metadata

    # The time goes into compiling many small programs. An XLA that does not know a flag would
    # abort, so the others are for the versions they were tried with.
    flags = "--xla_backend_optimization_level=0"
    if metadata.version("jaxlib").startswith("0.10."):
        flags += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        flags += " --xla_llvm_disable_expensive_passes=true"
    os.environ.setdefault("XLA_FLAGS", flags)
    # Programs are kept, so that a second run only compiles what changed since. A cache that the
    # caller has chosen, or switched off (JAX_ENABLE_COMPILATION_CACHE=false), stays as it is.
    with contextlib.suppress(UserError):  # without a home nothing is kept
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folders.caches() / "flm_jax/parity"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # a tenth of the time, no result
    # More of them would only wait, at full speed.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


COMMAND = Command(__doc__, Options, run, needs_reader=False)
