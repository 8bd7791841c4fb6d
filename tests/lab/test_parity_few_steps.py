"""SDTT, DCD and the samplers of diffusions on tokens against recorded runs of the public code."""

import pytest

from flm_jax.lab.parity import goldens, runner

KINDS = ("sdtt_loss", "sdtt_sample", "sdtt_train", "dcd_loss", "dcd_train", "duo_sample",
         "mdlm_sample", "psi_sample")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_recorded_runs_are_ours(shared, kind):
    rows = runner.run(shared / "golden-few-step", f"{kind}/")
    assert len(rows) > 10 and [row.line() for row in rows if not row.ok] == []


def test_every_recorded_kind_has_a_runner(shared):
    names = [case.name for case in goldens.read(shared / "golden-few-step")]
    assert {name.split("/")[0] for name in names} == set(KINDS)
    assert all(runner.longest(runner.KINDS, name) for name in names)
