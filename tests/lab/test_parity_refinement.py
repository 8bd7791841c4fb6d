"""Parity of refinement and block diffusion is a test that can fail: planted errors are found."""

import jax.numpy as jnp
import pytest

from flm_jax.flow import maps
from flm_jax.flow.at import At
from flm_jax.lab.parity import goldens, runner
from flm_jax.samplers.refinement import Refinement
from flm_jax.samplers.rounds import RoundSampler

JUMPS = "refinement/clues_flow2_budget"
BLOCKS = "block_diffusion/three_blocks_partial"


def rows(shared, name: str):
    case = next(c for c in goldens.read(shared / "golden-refinement") if c.name == name)
    return runner.whole_case(case)


@pytest.mark.slow
@pytest.mark.parametrize("name", [JUMPS, BLOCKS, "refinement/flow3_clock"])
def test_recorded_rounds_are_ours(shared, name):
    found = rows(shared, name)
    assert len(found) > 10 and all(row.ok for row in found)


def longer(jump):
    def wrong(s, t, eps=0.0):
        keep, add = jump(s, t, eps)
        return keep, add * 1.001

    return wrong


def least_likely(commit):
    return lambda self, r, n, open_BL, p_BL, keys: commit(self, r, n, open_BL, 1.0 - p_BL, keys)


PLANTS = {
    "a jump that is longer by a thousandth": (maps, "jump", longer, JUMPS, "mid/state"),
    "a network that is not told": (At, "given", lambda _: lambda at, _: at, JUMPS, "mid/state"),
    "the least likely first": (Refinement, "commit", least_likely, JUMPS, "mid/committed"),
    "a budget that is rounded down": (
        Refinement,
        "budget",
        lambda _: lambda self, open_BL, left: jnp.sum(open_BL, axis=1) // left,
        JUMPS,
        "mid/budget",
    ),
    "jumps of the whole round": (
        RoundSampler,
        "propose",
        lambda right: lambda self, at, x, s, t: right(self, at, x, s, jnp.ones_like(t)),
        BLOCKS,
        "mid/state",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", PLANTS)
def test_a_planted_error_is_found(shared, monkeypatch, what):
    owner, name, change, case, quantity = PLANTS[what]
    monkeypatch.setattr(owner, name, change(vars(owner)[name]))
    assert any(row.quantity.startswith(quantity) and not row.ok for row in rows(shared, case))
