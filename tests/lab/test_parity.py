"""Parity: the recorded official runs pass, and whatever is wrong with a set is a FAIL.

tests/parity_subset.json holds excerpts of the recorded numbers, so that something is compared in
a clone without the developers' folder; the cases with whole networks need that folder.
"""

import dataclasses
import json
import os
import pathlib
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import call

from flm_jax.errors import UserError
from flm_jax.lab.parity import checks, goldens, objective, precision, programs, runner
from flm_jax.models.attention import rotary_tables
from flm_jax.samplers import loops

SUBSET = json.loads((pathlib.Path(__file__).parent / "parity_subset.json").read_text())


@pytest.fixture
def subset(tmp_path) -> pathlib.Path:
    """The literal excerpts as a recorded set on disk."""
    folder = tmp_path / "subset"
    for entry in SUBSET["cases"]:
        path = folder / entry["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if entry["file"] in SUBSET["files"]:
            path.write_text(json.dumps(SUBSET["files"][entry["file"]]))
        else:
            arrays = {
                name: np.array(SUBSET["arrays"][entry["case"]][name], dtype).reshape(shape)
                for name, (dtype, shape) in entry["arrays"].items()
            }
            np.savez(path, **arrays)
    (folder / "manifest.json").write_text(json.dumps({"cases": SUBSET["cases"]}))
    return folder


def change_manifest(folder: pathlib.Path, change) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest["cases"])
    path.write_text(json.dumps(manifest))


def change_arrays(path: pathlib.Path, change) -> None:
    arrays = dict(np.load(path))
    change(arrays)
    np.savez(path, **arrays)


def failures(folder: pathlib.Path, only: str = "") -> list[checks.Row]:
    return [row for row in runner.run(folder, only) if not row.ok]


def test_the_literal_subset_passes(subset):
    rows = runner.run(subset)
    assert [row.line() for row in rows if not row.ok] == []
    assert {row.case for row in rows} == {entry["case"] for entry in SUBSET["cases"]}
    assert len(rows) > 130


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flm/flm_main", "sampler/fmlm_sampler_gamma0.5"])
def test_a_case_passes_as_one_program_too(shared, name):
    pieces, whole = (runner.run(shared / "golden", name, whole=whole) for whole in (False, True))
    assert [(row.quantity, row.ok) for row in pieces] == [(row.quantity, True) for row in whole]
    errors = [[row.max_abs for row in rows] for rows in (pieces, whole)]
    assert errors[0] != errors[1]  # they are rounded in other places: the option does something


def test_a_loop_of_python_is_the_scan_of_samplers():
    def step(state, i):
        return state * 2.0 + i, (state, i)

    for steps in (0, 1, 3):
        ours = programs.one_by_one(step, jnp.ones(2), steps)
        jax.tree.map(np.testing.assert_array_equal, ours, loops.loop(step, jnp.ones(2), steps))


def test_rotary_tables_are_the_recorded_ones():
    """Positions 1 and 6 of heads of width 8; the record repeats the half."""
    for ours, name in zip(rotary_tables(7, 8, np.float32), ("cos", "sin"), strict=True):
        recorded = np.array(SUBSET["rotary"][name])[:, :4]
        np.testing.assert_allclose(np.asarray(ours)[[1, 6]], recorded, atol=3e-7)


@pytest.mark.parametrize(
    "only", ["dit/double_hd8", "text/", "time/time_K97", "times/", "ckpt/flm_e"]
)
def test_quick_recorded_cases_pass(shared, only):
    rows = runner.run(shared / "golden", only)
    assert [row.line() for row in rows if not row.ok] == []
    assert rows


@pytest.mark.slow
@pytest.mark.parametrize(
    "only", ["plus_init/", "plus_dit/", "plus_loss/", "plus_train/", "plus_ckpt/"]
)
def test_all_cases_of_any_order_flow_maps_pass(shared, only):
    rows = runner.run(shared / "golden-refinement", only, jobs=min(4, os.cpu_count()))
    assert [row.line() for row in rows if not row.ok] == []
    cases = goldens.read(shared / "golden-refinement")
    assert {row.case for row in rows} == {c.name for c in cases if c.name.startswith(only)}


@pytest.mark.slow
def test_the_whole_set_passes(shared):
    cases = goldens.read(shared / "golden")
    rows = runner.run(shared / "golden", jobs=min(4, os.cpu_count()))
    assert [row.line() for row in rows if not row.ok] == []
    assert {row.case for row in rows} == {case.name for case in cases}


def test_an_unknown_kind_is_a_failure(subset):
    change_manifest(subset, lambda cases: cases.append({"case": "magic/x", "file": "none.npz"}))
    (row,) = failures(subset)
    assert row.reason == "unknown kind of case 'magic/x'"


def test_a_case_that_compares_nothing_is_a_failure(subset):
    (subset / "text/group_texts.json").write_text("[]")
    (row,) = failures(subset, "text/group")
    assert row.reason == "nothing was compared"


def test_a_missing_array_is_a_failure_whether_or_not_the_manifest_lists_it(subset):
    path = subset / "train/ema_vector.npz"
    change_arrays(path, lambda arrays: arrays.pop("in/values"))
    (row,) = failures(subset, "train/")
    assert row.reason == "the array 'in/values' is missing"
    change_manifest(subset, lambda cases: [entry.pop("arrays", None) for entry in cases])
    (row,) = failures(subset, "train/")
    assert row.reason == "the array 'in/values' is missing"


def test_another_shape_than_the_manifest_says_is_a_failure(subset):
    path = subset / "train/ema_vector.npz"
    change_arrays(path, lambda arrays: arrays.update({"in/values": arrays["in/values"][:5]}))
    (row,) = failures(subset, "train/")
    assert "'in/values' is" in row.reason and "[11, 2]" in row.reason


def test_missing_truncated_overwritten_and_altered_files_are_failures(subset):
    path = subset / "time/time_K27.npz"
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    for content in (whole[:middle], b"", b"no archive", flipped):
        path.write_bytes(content)
        (row,) = failures(subset, "time/")
        assert row.reason.startswith("the file time/time_K27.npz is damaged")
    path.unlink()
    (row,) = failures(subset, "time/")
    assert row.reason == "the file time/time_K27.npz is missing"


def test_an_array_of_objects_is_not_unpickled(subset):
    path = subset / "train/ema_vector.npz"
    change_arrays(path, lambda arrays: arrays.update({"in/values": np.array([{}, None])}))
    with zipfile.ZipFile(path) as file:
        assert "in/values.npy" in file.namelist()
    (row,) = failures(subset, "train/")
    assert "damaged" in row.reason


def test_damaged_json_is_a_failure(subset):
    (subset / "text/group_texts.json").write_text('[{"name": ')
    (row,) = failures(subset, "text/group")
    assert row.reason.startswith("the file text/group_texts.json is damaged")


@pytest.mark.parametrize(
    ("file", "array"),
    [
        ("time/time_K27.npz", "out/t"),
        ("time/time_K27.npz", "out/tau_f32"),
        ("times/time_and_split_sampling.npz", "single0/out/tau"),
        ("times/time_and_split_sampling.npz", "pair2/out/tau_s"),
        ("train/ema_vector.npz", "out/decay0.9999/after10"),
        ("text/sample_entropy.npz", "out/random/per_sample"),
    ],
)
def test_a_number_off_by_a_thousandth_is_a_failure(subset, file, array):
    change_arrays(subset / file, lambda arrays: arrays.update({array: arrays[array] * 1.001}))
    wrong = failures(subset, file.split(".")[0])
    assert [row.quantity.split(" ")[0] for row in wrong] == [array]
    assert wrong[0].max_abs > wrong[0].tolerance


def test_a_recorded_nan_is_a_failure(subset):
    path = subset / "train/ema_vector.npz"
    name = "out/decay0.5/after1"
    change_arrays(path, lambda arrays: arrays.update({name: arrays[name] * np.nan}))
    (row,) = failures(subset, "train/")
    assert row.reason == "the recorded array is not finite"


def compare(ours, expected, tolerance=1.0) -> checks.Row:
    rows = []
    case = goldens.Case({"case": "x/y", "file": "z"}, pathlib.Path(), {})
    checks.Checks(case, rows.append).close("q", ours, expected, tolerance)
    return rows[0]


def test_comparison_fails_on_nan_shapes_and_emptiness_and_passes_at_the_tolerance():
    assert compare([1.0, 3.0], [1.0, 2.0]).ok
    assert not compare([1.0, 3.0001], [1.0, 2.0]).ok
    assert not compare([1.0, np.nan], [1.0, 2.0]).ok
    assert not compare([1.0, np.inf], [1.0, 2.0]).ok
    assert not compare([1.0], [1.0, 2.0]).ok
    assert not compare([], []).ok
    row = compare([1.0, 3.0], [1.0, -2.0], 0.5)
    assert (row.max_abs, row.relative, row.tolerance, row.ok) == (5.0, 2.5, 0.5, False)


def test_a_tolerance_is_ten_times_the_record_and_an_ulp_is_always_allowed():
    entry = {"case": "x/y", "file": "z", "fp32_vs_fp64": {"out/a": [1e-4, 2.0], "out/b": [0.0, 1]}}
    case = goldens.Case(entry, pathlib.Path(), {})
    case.__dict__["arrays"] = {"out/a": np.array([2.0]), "out/b": np.array([1.0])}
    rows = []
    record = checks.Checks(case, rows.append, bits=32)
    record.recorded("out/a", [2.0])
    record.recorded("out/b", [1.0 + 1e-7])
    assert rows[0].tolerance == pytest.approx(1e-3) and rows[1].ok and rows[1].tolerance < 1e-6
    record.recorded("out/b", [1.0 + 1e-5], at_least=2e-5)  # a mean of terms known to 2e-5
    record.recorded("out/b", [1.0 + 1e-5], at_least=0.5e-5)
    assert [row.ok for row in rows[-2:]] == [True, False]
    with pytest.raises(goldens.GoldenError, match="no record"):
        case.__dict__["arrays"]["out/c"] = np.array([1.0])
        record.recorded("out/c", [1.0])


def test_the_expected_gradient_of_the_table_is_clean_plus_projected_noise(monkeypatch):
    monkeypatch.setattr(objective.noise_lib, "JITTER", 0.0)
    rng = np.random.default_rng(0)
    table, gradient, clean = (rng.normal(size=(7, 3)) for _ in range(3))
    result = objective.projected(table, gradient, clean)
    inside = np.linalg.lstsq(table, result - gradient, rcond=None)[1]
    assert np.allclose(table.T @ (result - gradient), 0.0)  # the change is orthogonal to T,
    assert inside.sum() > 0.1  # it is there,
    assert np.allclose(objective.projected(table, result, clean), result)  # and happens once


def test_command_prints_every_comparison_and_its_exit_code_says_whether_all_passed(subset, capsys):
    assert call("parity", str(subset), "--only", "train/*") == 0
    out = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("train/ema_vector") for line in out) >= 10
    assert out[-1].startswith("ok: 1 of 1 cases passed")
    (subset / "train/ema_vector.npz").unlink()
    assert call("parity", str(subset), "--only", "e") == 1  # the other cases still run
    out = capsys.readouterr().out
    assert "FAIL train/ema_vector: the file train/ema_vector.npz is missing" in out
    assert "text/sample_entropy" in out


def test_json_holds_every_row_and_plain_numbers(subset, tmp_path, capsys):
    name = "out/decay0.5/after1"
    change_arrays(subset / "train/ema_vector.npz", lambda a: a.update({name: a[name] + 1}))
    destination = tmp_path / "rows.json"
    assert call("parity", str(subset), "--only", "train/", "--json", str(destination)) == 1
    content = json.loads(destination.read_text())
    assert content["ok"] is False and content["cases_failed"] == ["train/ema_vector"]
    assert sum(not row["ok"] for row in content["rows"]) == 1
    assert set(content["rows"][0]) >= {"case", "quantity", "max_abs", "relative", "tolerance", "ok"}


def test_wrong_arguments_get_a_sentence(subset, tmp_path, capsys):
    assert call("parity", str(tmp_path / "nowhere")) == 2
    assert "has no manifest.json; give the folder of a recorded set" in capsys.readouterr().err
    assert call("parity", str(subset), "--only", "nothing_like_it") == 2
    assert "matches 'nothing_like_it'" in capsys.readouterr().err
    assert call("parity", str(subset), "--json", str(tmp_path)) == 2
    assert "is a folder; give the name of a file" in capsys.readouterr().err
    (subset / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="lists no cases"):
        goldens.read(subset)


def test_bfloat16_stays_near_float32_on_a_recorded_network(shared):
    cases = {case.name: case for case in goldens.read(shared / "golden")}
    _, _, loss, relative, _, cosine, _ = precision.loss_row(cases["flm/flm_main"]).split("|")
    assert 0.0 < float(relative) < 1e-2
    assert 0.99 < float(cosine.split()[-1]) < 1.0


def test_the_mask_of_an_autoregressive_case_is_never_drawn(shared):
    """What never won the draw may be the mask; what was written may not."""
    (case,) = (c for c in goldens.read(shared / "golden") if c.name == "baselines/ar_sample")
    written = set(case["out/tokens"].ravel().tolist())
    other = max(set(range(case.option("vocab_size"))) - written)
    for mask, fine in ((other, True), (int(case["out/tokens"][0, 2]), False)):
        entry = case.entry | {"config": case.config | {"mask_index": mask}}
        rows = runner.whole_case(dataclasses.replace(case, entry=entry))
        assert rows and all(row.ok == fine for row in rows)
