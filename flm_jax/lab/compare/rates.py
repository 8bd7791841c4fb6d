"""How long a training step takes on this machine, timed while nothing else runs."""

import dataclasses
import json
import statistics
import time
from collections.abc import Mapping, Sequence

import jax

from flm_jax import config as config_lib
from flm_jax.data import Prepared, load_corpus
from flm_jax.data import plan as plan_data
from flm_jax.host import distributed, numerics, progress
from flm_jax.lab.benchmark import measure
from flm_jax.lab.compare import runs

TIMED, SECONDS, LONGEST = 5, 3.0, 30.0  # steps at least, seconds at least, seconds of slow steps


@dataclasses.dataclass(frozen=True)
class Rate:
    """Seconds of a training step, and of compiling it."""

    step_s: float
    compile_s: float


def measured(base: config_lib.Config, methods: Sequence[str]) -> dict[str, Rate]:
    """The rate of every method; what process 0 has timed, in all processes."""
    size = vocabulary(base)
    found = {}
    for method in methods:
        with progress.Waiting(f"timing a training step of {method}"):
            found[method] = dataclasses.asdict(timed(runs.of_method(base, method), size))
    return of_json(json.loads(distributed.told("the rates", json.dumps(found))))


def of_json(stored: Mapping[str, Mapping[str, float]]) -> dict[str, Rate]:
    """Rates by method, of what `dataclasses.asdict` made of each."""
    return {name: Rate(**rate) for name, rate in stored.items()}


@numerics.pinned()
def timed(config: config_lib.Config, vocab_size: int) -> Rate:
    """Times the very step of a training, on random tokens, with random teachers."""
    start = time.perf_counter()
    step = measure.prepare(measure.Plan("train", config, vocab_size, 1, 1)).run
    step()  # warms up
    compile_s = time.perf_counter() - start
    seconds: list[float] = []
    while len(seconds) < TIMED or sum(seconds) < SECONDS:
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
        if sum(seconds) > LONGEST:
            break
    del step
    jax.clear_caches()
    return Rate(float(f"{statistics.median(seconds):.4g}"), round(compile_s, 1))


def vocabulary(base: config_lib.Config) -> int:
    """The size that the tokenizer has, which is made if there is none yet."""
    if base.data.name == Prepared.name:
        corpus = load_corpus(base.data)
        assert isinstance(corpus, Prepared)  # by its name
        return corpus.tokenizer.vocab_size
    return plan_data(base.data, base.tokenizer).tokenizer.vocab_size


def device() -> str:
    """What computes: "4 x NVIDIA H100"."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
