"""What `flm doctor` says of a machine, and that a part that fails does not end the report."""

import json
import types

import jax
import pytest

from flm_jax.cli import doctor as command
from flm_jax.host import doctor, locks


def fact(facts, name):
    (found,) = [fact for fact in facts if fact.name == name]
    return found


def test_nothing_is_wrong_where_the_tests_run_and_nothing_is_left(tmp_path, capsys):
    assert command.run(command.Options(workdir=str(tmp_path / "runs"))) == 0
    said = capsys.readouterr().out
    assert "nothing is wrong here" in said and "jax " in said and "model.dtype=auto" in said
    assert not list(tmp_path.iterdir())


def test_json_has_every_fact(tmp_path, capsys):
    command.run(command.Options(workdir=str(tmp_path), json=True))
    rows = json.loads(capsys.readouterr().out)
    assert {row["section"] for row in rows} >= {"versions", "devices", "memory", "files"}
    assert all(row["problem"] == "" for row in rows)


def test_a_library_that_is_too_old_or_missing_is_named_with_the_command(monkeypatch):
    versions = {"jax": "0.4.1", "flax": None}
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda x: versions.get(x.name, real(x)))
    found = list(doctor.versions())
    assert "jax 0.4.1 is not the version" in fact(found, "jax").problem
    assert "pip install 'jax<" in fact(found, "jax").problem
    assert fact(found, "flax").problem.startswith("flax is missing; pip install 'flax<")
    assert fact(found, "numpy").problem == ""


def test_an_extra_is_complete_with_the_extras_of_its_libraries(monkeypatch):
    lines = {
        "flm_jax": ["scipy", 'jax[chip]; extra == "chip"', 'numpy; extra == "plain"'],
        "jax": ["numpy", 'chip-driver; extra == "chip"'],
    }
    names = types.SimpleNamespace(get_all=lambda key: ["chip", "plain"])
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lines.__getitem__)
    monkeypatch.setattr(doctor.importlib.metadata, "metadata", lambda name: names)
    found = list(doctor.extras())
    assert fact(found, "chip").value == ("not installed (pip install 'flm_jax[chip]'): chip-driver")
    assert fact(found, "plain").value == "there"


@pytest.mark.parametrize("name, extra", [("_NVIDIA", "cuda"), ("_TPU", "tpu")])
def test_an_accelerator_that_jax_does_not_use_is_a_problem(monkeypatch, tmp_path, name, extra):
    assert jax.default_backend() == "cpu"
    monkeypatch.setattr(doctor, name, tmp_path)
    problem = fact(doctor.devices(), "devices").problem
    assert f"flm_jax[{extra}]" in problem and "JAX uses the CPU" in problem


def test_a_folder_without_locks_and_a_full_disk_are_problems(monkeypatch, tmp_path):
    assert fact(doctor.files(tmp_path), "locks").value == "work"
    monkeypatch.setattr(locks, "take", lambda *_: True)
    usage = types.SimpleNamespace(free=2**20, total=2**40)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    found = list(doctor.files(tmp_path))
    assert "does not lock files" in fact(found, "locks").problem
    assert "only 0.0 GiB are free" in fact(found, "space for runs").problem


def test_a_folder_that_cannot_be_written_is_a_problem_and_the_rest_is_told(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert command.run(command.Options(workdir=str(tmp_path / "file" / "runs"))) == 1
    said = capsys.readouterr().out
    assert "wrong here:" in said and "caches" in said


def test_only_variables_that_matter_are_told():
    variables = {"SECRET": "x", "XLA_FLAGS": "--a", "FLM_JAX_CACHE": "/c"}
    found = {fact.name: fact.value for fact in doctor.environment(variables)}
    assert found == {"FLM_JAX_CACHE": "/c", "XLA_FLAGS": "--a"}


def test_a_part_that_fails_is_a_fact_and_the_others_follow(monkeypatch, tmp_path):
    def broken():
        raise RuntimeError("no driver\nand a long trace")

    monkeypatch.setattr(doctor, "devices", broken)
    found = list(doctor.facts(tmp_path))
    assert fact(found, "devices").problem == "devices cannot be read: no driver"
    assert fact(found, "caches")
