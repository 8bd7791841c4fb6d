"""What this machine has for us, and what is wrong with it: versions, devices, memory, files.

Nothing is changed: a probe file in the folder of the runs is removed again.
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from packaging.requirements import Requirement

from flm_jax.errors import UserError
from flm_jax.host import files as files_lib
from flm_jax.host import folders, locks

PACKAGE = "flm_jax"
GIB = 2**30
LITTLE_DISK, LITTLE_MEMORY = 2 * GIB, 2 * GIB  # bytes: below, a small training may not end
# Variables that change what JAX or we do; values of others are nobody's business.
VARIABLES = (
    "FLM_JAX_",
    "JAX_",
    "XLA_",
    "LIBTPU_",
    "TPU_",
    "CUDA_VISIBLE",
    "OMP_NUM_",
    "LD_PRELOAD",
)
_NVIDIA, _TPU = pathlib.Path("/dev/nvidiactl"), pathlib.Path("/dev/accel0")
_MEMORY = pathlib.Path("/proc/meminfo")


@dataclasses.dataclass(frozen=True)
class Fact:
    """A line of the report; ``problem`` is a sentence with the remedy, "" if all is well."""

    section: str
    name: str
    value: str
    problem: str = ""


def facts(workdir: str | os.PathLike) -> Iterator[Fact]:
    """Everything that there is to say; a part that fails is a fact with a problem.

    Args:
      workdir: the folder that runs are to be written to; it need not exist.
    """
    parts: Sequence[tuple[str, Callable[[], Iterator[Fact]]]] = (
        ("versions", versions),
        ("extras", extras),
        ("environment", environment),  # before JAX adds its own
        ("devices", devices),
        ("memory", memory),
        ("files", functools.partial(files, pathlib.Path(workdir))),
    )
    for section, part in parts:
        try:
            yield from part()
        except Exception as error:  # a report must not end at what it is to report
            first = (str(error) or type(error).__name__).splitlines()[0]
            yield Fact(section, section, "unknown", f"{section} cannot be read: {first}")


def versions() -> Iterator[Fact]:
    """Python, the system, and every library that we need, held against what setup.cfg asks for."""
    from flm_jax import __version__

    where = pathlib.Path(__file__).resolve().parents[1]
    yield Fact("versions", PACKAGE, f"{__version__}, {where}")
    yield Fact("versions", "Python", f"{platform.python_version()}, {sys.executable}")
    yield Fact("versions", "system", platform.platform())
    for needed in _requirements(PACKAGE):
        if needed.marker is None:
            yield _library(needed)


def extras() -> Iterator[Fact]:
    """Which optional parts are complete."""
    for name in importlib.metadata.metadata(PACKAGE).get_all("Provides-Extra") or ():
        missing = sorted(set(_missing(PACKAGE, name)))
        lacks = f"not installed (pip install '{PACKAGE}[{name}]'): {', '.join(missing)}"
        yield Fact("extras", name, lacks if missing else "there")


def _missing(package: str, extra: str) -> Iterator[str]:
    """Distributions that an extra of a package needs and that are not there."""
    for needed in _requirements(package):
        if needed.marker is not None and needed.marker.evaluate({"extra": extra}):
            if not needed.marker.evaluate({"extra": ""}):  # else the package itself needs it
                if _version(needed) is None:
                    yield needed.name
                else:
                    for further in needed.extras:
                        yield from _missing(needed.name, further)


def devices() -> Iterator[Fact]:
    """What JAX computes on, and an accelerator that is there but not used."""
    import jax

    from flm_jax.host import bfloat16

    start = time.perf_counter()
    found = jax.devices()
    took = time.perf_counter() - start
    kinds = ", ".join(sorted({device.device_kind for device in found}))
    used = found[0].platform
    unused = ""
    if used == "cpu" and _NVIDIA.exists():
        unused = f"there is an NVIDIA GPU, but JAX uses the CPU; pip install '{PACKAGE}[cuda]'"
    elif used == "cpu" and _TPU.exists():
        unused = f"there is a TPU, but JAX uses the CPU; pip install '{PACKAGE}[tpu]'"
    yield Fact("devices", "devices", f"{len(found)} x {used} ({kinds}), after {took:.1f} s", unused)
    stats = found[0].memory_stats() or {}
    if "bytes_limit" in stats:
        yield Fact("devices", "memory of each", f"{stats['bytes_limit'] / GIB:.1f} GiB")
    yield Fact("devices", "processes", f"{jax.process_count()}")
    choice = bfloat16.choose()
    yield Fact("devices", "model.dtype=auto", f"{choice.dtype}: {choice.why}")


def memory() -> Iterator[Fact]:
    """Cores and main memory of this machine, as far as this process may use them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Fact("memory", "cores", f"{cores} of {os.cpu_count()}")
    if _MEMORY.exists():
        lines = (line.split() for line in _MEMORY.read_text().splitlines())
        sizes = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
        free = sizes["MemAvailable"]
        little = ""
        if free < LITTLE_MEMORY:
            little = f"only {free / GIB:.1f} GiB of memory are free; end other programs"
        shown = f"{free / GIB:.1f} GiB free of {sizes['MemTotal'] / GIB:.1f}"
        yield Fact("memory", "main memory", shown, little)


def files(workdir: pathlib.Path) -> Iterator[Fact]:
    """Whether runs can be written: rename, lock, space; and where caches are."""
    try:
        files_lib.check_writable(workdir / "probe")
        problem = ""
    except UserError as error:
        problem = str(error)
    yield Fact("files", "folder of runs", f"{workdir.resolve()}", problem)
    existing = next(p for p in (workdir.resolve(), *workdir.resolve().parents) if p.exists())
    if not problem:
        yield _lock(existing)
    yield _space("space for runs", existing)
    cache = folders.cache()
    present = next(p for p in (cache, *cache.parents) if p.exists())
    yield Fact("files", "caches", f"{cache}{'' if cache.exists() else ' (not there yet)'}")
    yield _space("space for caches", present)


def environment(variables: Mapping[str, str] | None = None) -> Iterator[Fact]:
    """Variables that change what JAX or we do."""
    found = os.environ if variables is None else variables
    chosen = {name: found[name] for name in sorted(found) if name.startswith(VARIABLES)}
    for name, value in chosen.items():
        yield Fact("environment", name, value)
    if not chosen:
        yield Fact("environment", "variables", "none that matter")


def _requirements(package: str) -> Iterator[Requirement]:
    for line in importlib.metadata.requires(package) or ():
        yield Requirement(line)


def _version(needed: Requirement) -> str | None:
    try:
        return importlib.metadata.version(needed.name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _library(needed: Requirement) -> Fact:
    version = _version(needed)
    wanted = f"pip install '{needed.name}{needed.specifier}'"
    if version is None:
        return Fact("versions", needed.name, "missing", f"{needed.name} is missing; {wanted}")
    if not needed.specifier.contains(version, prereleases=True):
        problem = f"{needed.name} {version} is not the version that is needed; {wanted}"
        return Fact("versions", needed.name, version, problem)
    return Fact("versions", needed.name, version)


def _lock(folder: pathlib.Path) -> Fact:
    """Whether a lock is seen: by a second opening of the file, as by a second run in a workdir."""
    probe = folder / f".{PACKAGE}_doctor_{os.getpid()}"
    try:
        with probe.open("w") as first, probe.open("w") as second:
            works = locks.take(first, "see flm doctor") and not locks.take(second, "")
    finally:
        probe.unlink(missing_ok=True)
    if works:
        return Fact("files", "locks", "work")
    return Fact(
        "files",
        "locks",
        "do nothing",
        f"the file system of {folder} does not lock files, so that two runs in one workdir would "
        "not notice each other; use another folder, or take care",
    )


def _space(name: str, folder: pathlib.Path) -> Fact:
    usage = shutil.disk_usage(folder)
    free = f"{usage.free / GIB:.1f} GiB"
    little = ""
    if usage.free < LITTLE_DISK:
        little = f"only {free} are free in {folder}; free some, or use another folder"
    return Fact("files", name, f"{free} free of {usage.total / GIB:.1f}", little)
