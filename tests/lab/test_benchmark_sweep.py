"""Sweeps over shapes and the table of largest batches: which points, which rows, which files."""

import csv
import json
import xml.etree.ElementTree

import pytest
from commands import flm
from test_benchmark import TINY

from flm_jax.errors import UserError
from flm_jax.lab.benchmark import sweep


def cost(space, point, limit=10**9):
    """A machine on which the dense space needs memory in proportion to B * L * V."""
    dense = space == "onehot"
    batch, length, vocab, width = point
    memory = batch * length * (vocab if dense else 16) + vocab * 16
    if memory > limit:
        return None
    ms = batch * length * vocab * width / (4000 if dense else 16000)
    return {
        "tokens_per_second": 1e3 * batch * length / ms, "ms_per_step": ms, "ms_spread": 0.0,
        "peak_memory_bytes": memory, "utilisation": 0.5,
    }  # fmt: skip


def test_one_axis_varies_at_a_time_and_no_point_is_measured_twice():
    axes = {"batch": [2, 4], "length": [16], "vocab": [50, 100], "width": [32]}
    found = sweep.points(sweep.Point(4, 8, 100, 16), axes)
    assert found == [
        (4, 8, 100, 16), (2, 8, 100, 16), (4, 16, 100, 16), (4, 8, 50, 16), (4, 8, 100, 32)
    ]  # fmt: skip


@pytest.mark.parametrize("limit, batch", [(8 * 16 * 16 + 1600, 16), (8 * 16 * 13 + 1600, 12)])
def test_the_largest_batch_is_found_by_doubling_and_one_step_between(limit, batch):
    def measure(space, point):
        return cost(space, point, limit=limit)

    base = sweep.Point(2, 5, 50, 16)
    (row,) = sweep.largest(measure, [(8, 100)], base, 64, ["projected"])
    assert row["batch"] == batch and row["vocab"] == 100
    (row,) = sweep.largest(measure, [(8, 100)], base, 8, ["projected"])
    assert row["batch"] == 8
    (row,) = sweep.largest(measure, [(8, 10**6)], base, 8, ["onehot"])
    assert "tokens_per_second" not in row
    assert "did not fit" in sweep.markdown([row])


@pytest.mark.parametrize("widths, panels", [([], 4), ([32, 64], 6)])
def test_files_of_a_sweep(tmp_path, widths, panels):
    axes = {"batch": [8, 16], "vocab": [200, 400], "width": widths}
    rows = sweep.sweep(cost, sweep.Point(4, 8, 100, 16), axes, sweep.SPACES)
    sweep.check(tmp_path, "sweep")
    sweep.write(tmp_path, "sweep", rows, plot=True)
    assert json.loads((tmp_path / "sweep.json").read_text()) == rows
    with open(tmp_path / "sweep.csv") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows) == 10 + 2 * len(widths)
    assert [float(r["ms_per_step"]) for r in table] == [r["ms_per_step"] for r in rows]
    assert "| 8 | 100 | 4 | 16 | projected | 10,000 |" in (tmp_path / "sweep.md").read_text()
    assert "| 4.00 | 0.440 |" in (tmp_path / "sweep.md").read_text()
    picture = (tmp_path / "sweep.svg").read_text()
    xml.etree.ElementTree.fromstring(picture)
    assert picture.count("<polyline") == 2 * panels
    assert "exponent 1.00<" in picture and "exponents at the end" in picture
    with pytest.raises(UserError, match="exists already"):
        sweep.check(tmp_path, "sweep")


def test_the_exponent_is_that_of_a_power_law():
    assert sweep.slope([(1, 9), (2, 3), (4, 12)]) == pytest.approx(2.0)
    assert sweep.slope([(2, 3)]) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "words, count",
    [
        (["sweep", "--vary_vocab=160", "--vary_width=32", "--space=projected"], 3),
        (["table", "--shapes=8x80", "--max_batch=2", "--config.model.dtype=bfloat16"], 2),
        (["sweep", "--of=sample", "--sampling_steps=2", "--space=onehot"], 1),
    ],
)
def test_the_commands_at_a_tiny_size(words, count, tmp_path):
    done = flm("benchmark", *words, *TINY, f"--output={tmp_path}")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / f"{words[0]}.json").read_text())
    assert len(rows) == count and all(row["tokens_per_second"] > 0 for row in rows)
    assert str(tmp_path) in done.stdout
