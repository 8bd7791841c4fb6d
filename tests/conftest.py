"""Test set-up: 8 virtual CPU devices, strict rank promotion, fast compiles, a compile cache."""

import fnmatch
import gc
import os
import pathlib
import signal

# nohup ignores SIGHUP, and what is ignored stays so in all programs; the tests send it.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The suite spends its time compiling, not computing.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
).strip()

import jax
import pytest
from absl import flags

from flm_jax.lab.parity.runner import forget_programs

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
CACHE = os.environ.setdefault("FLM_JAX_TEST_CACHE", "~/.cache/flm_jax/test-compile-cache")
jax.config.update("jax_compilation_cache_dir", os.path.expanduser(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl flags

gc.freeze()
gc.set_threshold(50_000, 20, 100)
SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


SLOW_VARIANTS = [
    line.replace("[", "[[]")  # names have brackets, which patterns would read
    for line in (pathlib.Path(__file__).parent / "slow_variants.txt").read_text().splitlines()
    if not line.startswith("#")
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = item.nodeid.removeprefix("tests/")
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in SLOW_VARIANTS):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The developers' goldens and corpora; tests that need them skip in a user's clone."""
    if not SHARED.is_dir():
        pytest.skip(f"the developers' shared folder is not at {SHARED}")
    return SHARED


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Hundreds of compiled programs are more than a process may map."""
    yield
    forget_programs()
