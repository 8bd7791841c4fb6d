"""How long a sequence takes to write, and how many a device writes in a second.

Two numbers that are not one another's inverse: the *latency* of a single sequence, which a person
waits for, and the *throughput* of the batch with the most sequences in a second. Both are clock
times of the compiled sampler that users run, from its call to the tokens in the host's memory, one
transfer included. Compiling is measured apart, and the first run of a program is not counted.

Trained and random weights take the same time, except where a sampler decides by what it sees how
many evaluations it needs (the cache of masked diffusion, the patience of samplers of vectors).
"""

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.config import SamplerConfig
from flm_jax.flow.at import STUDENT
from flm_jax.host import numerics
from flm_jax.host.compiled import needed_bytes
from flm_jax.inference import FlowModel
from flm_jax.inference.programs import Program
from flm_jax.lab.compare.results import Point, Setting, split
from flm_jax.lab.plan.predict import RESERVED
from flm_jax.samplers.base import Sampler, Written
from flm_jax.sampling import Sampling

REPEATS, SECONDS = 20, 20.0  # runs at batch 1, and when no more are begun
FEWEST = 5  # runs at batch 1, however long they take
BATCH_REPEATS = 3  # runs of every larger batch; the middle one counts
GROWTH = 1.05  # of throughput from a batch to twice as many; less is none
MOST = 4096


@dataclasses.dataclass(frozen=True)
class Latency:
    """The times of one way of writing, on one device.

    Attributes:
      evaluations: of the network for a sequence at batch 1, those that were made, on average.
      p50_ms, p95_ms: of one sequence at batch 1, over ``runs`` runs.
      cpu_ms: processor time of this process in the middle run: on a busy CPU steadier than a clock;
        with an accelerator the host's part.
      compile_s: of the program for batch 1.
      batch: the one with the most sequences in a second.
      ended: why no larger batch was tried: "throughput" (it stopped growing), "memory", "limit".
      memory_bytes: what the program of that batch needs, weights included, as its compiler says.
    """

    evaluations: float
    length: int
    p50_ms: float
    p95_ms: float
    cpu_ms: float
    runs: int
    compile_s: float
    batch: int
    sequences_per_s: float
    tokens_per_s: float
    ended: str
    memory_bytes: int
    device: str
    dtype: str


@numerics.pinned()
def measure(
    model: FlowModel,
    sampler: str,
    settings: Sequence[Setting],
    evaluations: int,
    length: int,
    *,
    repeats: int = REPEATS,
    seconds: float = SECONDS,
    max_batch: int = MOST,
) -> Latency:
    """Times a model that writes sequences of ``length`` tokens, as `results.Point` says how.

    Args:
      sampler: by name; "" takes that of the model's config.
      settings: knobs and options of it, as a point has them.
      evaluations: network evaluations, at most; a sampler that takes one number only takes that.
      repeats: runs at batch 1; no more are begun after ``seconds``, but `FEWEST` at least.
      max_batch: no larger batch is tried.

    Raises UserError for what does not fit the model, as `FlowModel.generate` does.
    """
    rule, section = chosen(model, sampler, settings, evaluations, length)
    make = functools.partial(_Run, model, rule, section.sampling(section.steps[0]), length)
    one = make(1)
    found, start = [], time.perf_counter()
    while len(found) < repeats:
        if len(found) >= FEWEST and time.perf_counter() - start > seconds:
            break
        found.append(one.timed())
    times = [run.seconds for run in found]
    batch, rate, memory, ended = fastest(make, one, float(np.median(times)), max_batch)
    return Latency(
        evaluations=float(np.mean([run.evaluations for run in found])),
        length=length,
        p50_ms=1e3 * float(np.median(times)),
        p95_ms=1e3 * float(np.percentile(times, 95)),
        cpu_ms=1e3 * float(np.median([run.cpu_seconds for run in found])),
        runs=len(found),
        compile_s=one.compile_s,
        batch=batch,
        sequences_per_s=rate,
        tokens_per_s=rate * length,
        ended=ended,
        memory_bytes=memory,
        device=jax.devices()[0].device_kind,
        dtype=jnp.dtype(model.experiment.model.module.dtype).name,
    )


def chosen(
    model: FlowModel, sampler: str, settings: Sequence[Setting], evaluations: int, length: int
) -> tuple[Sampler, SamplerConfig]:
    """The sampler, and its section with one number of steps, that of these evaluations."""
    knobs, options = split(settings)
    row = model.experiment.sampler(sampler, options)
    point = Point("", evaluations, sampler, tuple(settings))
    steps = row.steps_for(length) or point.steps(model.config.sampler.fixed_point_iterations)
    return model.sampler(sampler, options, knobs | {"steps": (steps,)}, length)


def fastest(
    make: Callable[[int], "_Run"], one: "_Run", seconds: float, max_batch: int
) -> tuple[int, float, int, str]:
    """(batch, sequences per second, bytes, why it ended): doubled from 1 while it pays and fits."""
    batch, rate, memory = 1, 1.0 / seconds, one.memory_bytes
    while batch * 2 <= max_batch:
        try:
            larger = make(batch * 2)
            if larger.memory_bytes > room():
                return batch, rate, memory, "memory"
            times = [larger.timed().seconds for _ in range(BATCH_REPEATS)]
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return batch, rate, memory, "memory"
        found = larger.batch / float(np.median(times))
        if found < GROWTH * rate:
            return batch, rate, memory, "throughput"
        batch, rate, memory = larger.batch, found, larger.memory_bytes
    return batch, rate, memory, "limit"


class _Timed(NamedTuple):
    """One run: by the clock, of the processors, and what a sequence took on average."""

    seconds: float
    cpu_seconds: float
    evaluations: float


class _Run:
    """A compiled sampler of a batch, warm.

    Attributes:
      compile_s: that compiling it took.
      memory_bytes: that it needs.
    """

    def __init__(
        self, model: FlowModel, rule: Sampler, sampling: Sampling, length: int, batch: int
    ):
        frozen = {role: other.params for role, other in model.frozen.items()}
        self._params = frozen | {STUDENT: model.params}
        self._constant = model.programs.constant(rule, self._params)
        self._key, self._count, self.batch = numerics.key(0), 0, batch
        program = Program(rule, sampling, batch, length, trajectory=False)
        start = time.perf_counter()
        self._compiled = model.programs.compiled(program, self._params, self._constant)
        self.compile_s = time.perf_counter() - start
        model.programs.kept.pop(program)  # a program of every batch would fill the memory
        self.memory_bytes = _memory(self._compiled)
        self.timed()

    def timed(self) -> _Timed:
        """One run, with other noise than the last."""
        first = jnp.int32(self._count * self.batch)
        first.block_until_ready()
        self._count += 1
        start, cpu = time.perf_counter(), time.process_time()
        written: Written = self._compiled(self._params, self._constant, self._key, first, None)
        np.asarray(written.tokens_BL)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        return _Timed(seconds, cpu, float(np.mean(written.evaluations_B)))


def _memory(compiled: Callable) -> int:
    """Bytes that a compiled program needs on its device; 0 where the compiler does not say."""
    return (needed_bytes(compiled) or 0) if isinstance(compiled, jax.stages.Compiled) else 0


def room() -> float:
    """Bytes of the first device that a program may take."""
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    if not limit:
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (1 - RESERVED) * limit
