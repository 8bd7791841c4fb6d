"""What the real compiler says of a config's training step, or sampler, on chips not here.

Memory to the byte, whether it fits, the collectives with their bytes, arrays of the vocabulary's
size, kernels. Time is not known: that needs the chip.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from flm_jax import target
from flm_jax.host import numerics, progress, sharding
from flm_jax.inference.programs import counted
from flm_jax.lab.plan import hlo, moved, predict, program, timing, topology
from flm_jax.lab.plan.chips import Chip
from flm_jax.lab.plan.program import Work

SHOWN = 6  # collectives, in words
NEAR = 1.03  # the largest batch is found to this factor


@dataclasses.dataclass(frozen=True)
class Found:
    """One program, compiled for one mesh. Bytes are those of one device.

    Attributes:
      program: "training step", or "sampler, 8 steps".
      arguments, temporaries, results: what a step is given (and gives back in the same place), what
        it takes besides, and results in places of their own.
      of_vocabulary: arrays of at least a row of V entries for every token of the micro-batch on a
        device, which the projected space does without.
      moved: bytes that a step reads from the chip's memory and writes to it (`moved.py`).
      seconds: that tracing and compiling took.
      least: seconds of a training step's parts if each reached the vendor's rates: products by
        formula, memory and links by the bytes of this program.
    """

    program: str
    chip: Chip
    mesh: tuple[int, int, int]
    arguments: int
    temporaries: int
    results: int
    collectives: tuple[hlo.Collective, ...]
    of_vocabulary: Mapping[hlo.Array, int]
    largest: hlo.Array
    kernels: Mapping[str, int]
    moved: float
    seconds: float
    least: timing.Seconds | None = None

    @property
    def memory(self) -> int:
        return self.arguments + self.temporaries + self.results

    @property
    def fits(self) -> bool:
        return self.memory <= predict.room(self.chip)


def training_step(work: Work, chip: Chip, mesh: tuple[int, int, int]) -> Found:
    """The training step of a work on such a mesh.

    Raises UserError as `topology.devices` does.
    """

    def lowered(made: jax.sharding.Mesh) -> tuple[jax.stages.Lowered, str]:
        return program.build(work.config, work.vocab_size, made).lowered(), "training step"

    tokens = work.tokens / work.config.optim.accumulation_steps
    found = _compiled(lowered, work, chip, mesh, tokens)
    return dataclasses.replace(found, least=_least(work, found))


def _least(work: Work, found: Found) -> timing.Seconds:
    """The parts of a step at the vendor's rates."""
    predicted = timing.seconds(work, found.chip, found.mesh, share=1.0)
    rate = timing.link_rate(found.chip, math.prod(found.mesh))
    sent = sum(one.bytes for one in found.collectives)
    return dataclasses.replace(
        predicted, memory=found.moved / (1e9 * found.chip.memory_gbs), links=sent / rate
    )


def utilisation(least: timing.Seconds) -> tuple[float, float]:
    """Products' share of the peak if nothing hides behind them, and if all that can does."""
    rest = least.memory + least.links
    alone = least.products + least.noise
    return least.products / (alone + rest), least.products / max(alone, rest)


def sampler(work: Work, chip: Chip, mesh: tuple[int, int, int], steps: int) -> Found:
    """The program that writes ``sampler.batch_size`` texts in so many steps, on such a mesh.

    Raises UserError as `topology.devices` does.
    """

    def lowered(made: jax.sharding.Mesh) -> tuple[jax.stages.Lowered, str]:
        found, taken = program.sampler(work.config, work.vocab_size, made, steps)
        return found, f"sampler, {counted(taken)}"

    tokens = work.config.sampler.batch_size * work.config.data.length
    return _compiled(lowered, work, chip, mesh, tokens)


@numerics.pinned()
def _compiled(
    lowered: Callable[[jax.sharding.Mesh], tuple[jax.stages.Lowered, str]],
    work: Work,
    chip: Chip,
    mesh: tuple[int, int, int],
    tokens: float,
) -> Found:
    """A program and its name, compiled for chips; it has so many tokens at one time, on all."""
    data, fsdp, tensor = mesh
    number = math.prod(mesh)
    devices = topology.devices(chip, number)
    made = sharding.make_mesh(mesh, devices)
    with target.compiling_for(target.of_devices(devices)):
        start = time.perf_counter()
        with progress.Waiting(f"compiling for {number} x {chip.name}"):
            traced, name = lowered(made)
            step = traced.compile()
    seconds = time.perf_counter() - start
    limit = tokens / (data * fsdp) * work.vocab_size / tensor
    used, read = step.memory_analysis(), hlo.Program(step.as_text() or "")
    assert used is not None  # compilers of TPUs and GPUs keep account
    return Found(
        name, chip, mesh,
        arguments=used.argument_size_in_bytes,
        temporaries=used.temp_size_in_bytes,
        results=used.output_size_in_bytes - used.alias_size_in_bytes,
        collectives=read.collectives,
        of_vocabulary={a: n for a, n in read.arrays.items() if a.entries >= limit},
        largest=max(read.arrays, key=lambda array: array.bytes),
        kernels=read.kernels,
        moved=moved.moved(read),
        seconds=seconds,
    )  # fmt: skip


def largest_batch(work: Work, chip: Chip, mesh: tuple[int, int, int]) -> int:
    """Sequences in all that fit without accumulation, by compiling; 0 if not even one a group.

    Memory grows with the batch nearly on a straight line: the next batch to try is where the line
    through the last two meets the room, until neighbours differ by less than `NEAR`.
    """
    groups, room = mesh[0] * mesh[1], predict.room(chip)

    def memory(rows: int) -> int:
        return training_step(predict.with_batch(work, rows * groups), chip, mesh).memory

    guess = max(1, predict.largest_batch(work, chip, mesh) // groups)
    fits, too_many = 0, 0
    tried: dict[int, int] = {}
    rows = guess
    while rows not in tried and not (fits and too_many and too_many <= max(fits + 1, NEAR * fits)):
        tried[rows] = memory(rows)
        if tried[rows] <= room:
            fits = max(fits, rows)
        else:
            too_many = min(too_many or rows, rows)
        rows = _next(tried, room, fits, too_many)
        if rows < 1:
            break
    return fits * groups


def _next(tried: Mapping[int, int], room: float, fits: int, too_many: int) -> int:
    """Rows to try: on the line through the two trials nearest to the room, inside what is known."""
    nearest = sorted(tried, key=lambda rows: abs(tried[rows] - room))[:2]
    if len(nearest) < 2:
        (only,) = nearest
        return only * 2 if tried[only] <= room else only // 2
    low, high = sorted(nearest)
    slope = (tried[high] - tried[low]) / (high - low)
    rows = int(low + (room - tried[low]) / slope) if slope > 0 else high * 2
    if fits and too_many:
        return min(max(rows, fits + 1), too_many - 1)
    return min(rows, 2 * fits) if fits else max(1, min(rows, too_many - 1))


def report(found: Found) -> str:
    """In words."""
    data, fsdp, tensor = found.mesh
    total = sum(one.bytes for one in found.collectives)
    shown = [
        f"    {one.bytes / 1e6:10.1f} MB  {one.kind} {one.array}, {one.times} times a step"
        for one in found.collectives[:SHOWN]
    ]
    if len(found.collectives) > SHOWN:
        rest = sum(one.bytes for one in found.collectives[SHOWN:])
        shown.append(f"    {rest / 1e6:10.1f} MB  {len(found.collectives) - SHOWN} other kinds")
    arrays = ", ".join(f"{array} ({n} times)" for array, n in found.of_vocabulary.items())
    kernels = ", ".join(f"{name} ({n} times)" for name, n in found.kernels.items())
    verdict = "fits" if found.fits else "DOES NOT FIT"
    lines = [
        f"{found.program} compiled for {data * fsdp * tensor} x {found.chip.name}, mesh "
        f"data={data} fsdp={fsdp} tensor={tensor}, in {found.seconds:.0f} s",
        f"  memory         {found.memory / 1e9:.2f} of {found.chip.memory_gb:g} GB per chip: "
        f"{verdict}; state {found.arguments / 1e9:.2f}, temporaries "
        f"{found.temporaries / 1e9:.2f}, other results {found.results / 1e9:.2f}",
        f"  memory traffic {found.moved / 1e9:.1f} GB a step",
        *([] if found.least is None else [_in_words(found.least)]),
        f"  largest array  {found.largest}, {found.largest.bytes / 1e6:.1f} MB",
        f"  vocabulary     {arrays or 'no array of all tokens and the vocabulary'}",
        f"  collectives    {total / 1e9:.3f} GB a step on each chip" + ":" * bool(shown),
        *shown,
        f"  kernels        {kernels or 'none but those that the compiler makes'}",
        f"  assumed        a tenth of the memory stays free ({predict.RESERVED:g}); what a loop "
        "whose length depends on data does, counts once",
    ]
    return "\n".join(lines)


def _in_words(least: timing.Seconds) -> str:
    """The parts of a step, and what follows for the whole."""
    low, high = utilisation(least)
    parts = dataclasses.asdict(least).items()
    listed = ", ".join(f"{name} {1e3 * value:.1f}" for name, value in parts)
    return (
        f"  at least       {listed} ms at the vendor's rates: products reach between "
        f"{100 * low:.0f} and {100 * high:.0f} % of the peak"
    )


def as_json(found: Found) -> dict[str, Any]:
    """For programs."""
    return {
        "program": found.program,
        "chip": found.chip.name,
        "mesh": found.mesh,
        "memory_bytes": found.memory,
        "arguments_bytes": found.arguments,
        "temporaries_bytes": found.temporaries,
        "fits": found.fits,
        "largest_array": str(found.largest),
        "arrays_of_the_vocabulary": {str(a): n for a, n in found.of_vocabulary.items()},
        "collectives": [
            {"kind": one.kind, "array": str(one.array), "times": one.times, "bytes": one.bytes}
            for one in found.collectives
        ],
        "kernels": dict(found.kernels),
        "moved_bytes": found.moved,
        "least_seconds": None if found.least is None else dataclasses.asdict(found.least),
        "compile_seconds": found.seconds,
    }
