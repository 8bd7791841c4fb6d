"""benchmarks/gpu.sh at a tiny size on this machine: each section runs, or says that it does not."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECTIONS = ("versions", "kernels", "lm1b", "owt", "lm1b_onehot", "owt_onehot", "lm1b_distill",
            "profile", "latency", "largest")  # fmt: skip


def run(folder, **variables):
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment = kept | {"PYTHON": sys.executable, "TINY": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [ROOT / "benchmarks" / "gpu.sh", folder], env=environment | variables, cwd=folder,
        capture_output=True, text=True,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    lines = (folder / "summary.txt").read_text().splitlines()
    return dict(line.split(": ", 1) for line in lines)


def test_without_time_every_section_is_left_out(tmp_path):
    said = run(tmp_path, MINUTES="0")
    assert tuple(said) == SECTIONS
    assert all(text.startswith("left out, 0 s are left") for text in said.values())


@pytest.mark.slow
def test_every_section_runs(tmp_path):
    said = run(tmp_path, MINUTES="30")
    assert tuple(said) == SECTIONS
    failed = {name: (tmp_path / f"{name}.err").read_text()[-800:]
              for name, text in said.items() if not text.startswith("exit 0 ")}  # fmt: skip
    assert not failed, failed
    for name in SECTIONS[1:]:
        assert json.loads((tmp_path / f"{name}.out").read_text().splitlines()[-1]), name
    rows = [json.loads(line) for line in (tmp_path / "kernels.out").read_text().splitlines()]
    checked = [row for row in rows if "errors" in row]
    assert {row["form"] for row in checked} >= {"einsum", "chunked"}
    assert all(max(row["errors"]) < 3e-2 for row in checked)
