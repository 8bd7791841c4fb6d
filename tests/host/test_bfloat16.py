"""Where products in bfloat16 are worth it; what the clock said is given."""

import pytest

from flm_jax import target
from flm_jax.host import bfloat16


@pytest.mark.parametrize(
    "ratio, dtype", [(0.3, "float32"), (1.49, "float32"), (1.5, "bfloat16"), (2.0, "bfloat16")]
)
def test_a_cpu_is_asked(ratio, dtype, monkeypatch):
    monkeypatch.setattr(bfloat16, "speedup", lambda: ratio)
    choice = bfloat16.choose()
    assert choice.dtype == dtype and f"{ratio:.2g} times as fast" in choice.why
    assert bfloat16.settled("auto") == dtype
    assert bfloat16.settled("float32") == "float32" and bfloat16.settled("bfloat16") == "bfloat16"


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_accelerators_have_units_for_it(platform, monkeypatch):
    monkeypatch.setattr(bfloat16, "speedup", lambda: pytest.fail("nothing needs to be timed"))
    with target.compiling_for(target.Target(platform, "any", 8)):
        assert bfloat16.choose().dtype == "bfloat16"


def test_the_ratio_is_a_number_made_once():
    assert 0 < bfloat16.speedup() == bfloat16.speedup() < 100
