"""Parity is a test that can fail: an error of a thousandth in what it covers is found."""

import pytest
from planted import ANY_ORDER_PLANTS, FEW_STEPS_PLANTS, PLANTS, found

from flm_jax.lab.parity import goldens

# One of every kind; `python tests/planted.py DIRECTORY` plants all of them in more cases.
FEW = ("clock", "rotary", "loss", "loss_gradient", "sampler", "learning_rate", "average")


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_a_planted_thousandth_is_found(shared, name):
    plant = PLANTS[name]
    cases = {case.name: case for case in goldens.read(shared / "golden")}
    assert set(plant.cases) <= set(cases)
    row = found(plant, cases[plant.cases[0]])
    assert row is not None and row.max_abs > row.tolerance


@pytest.mark.slow
@pytest.mark.parametrize("name", ANY_ORDER_PLANTS)
def test_a_planted_thousandth_is_found_in_any_order_flow_maps(shared, name):
    plant = ANY_ORDER_PLANTS[name]
    cases = {case.name: case for case in goldens.read(shared / "golden-refinement")}
    row = found(plant, cases[plant.cases[0]])
    assert row is not None and (row.reason or row.max_abs > row.tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW_STEPS_PLANTS)
def test_a_planted_thousandth_is_found_in_few_steps(shared, name):
    plant = FEW_STEPS_PLANTS[name]
    cases = {case.name: case for case in goldens.read(shared / "golden-few-step")}
    assert set(plant.cases) <= set(cases)
    row = found(plant, cases[plant.cases[0]])
    assert row is not None and (row.reason or row.max_abs > row.tolerance)
