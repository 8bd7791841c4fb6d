"""How well the machine is used: the formula of MFU, waiting for data, memory, and a trace."""

import gzip
import json
import logging as std_logging
import pathlib
import types

import jax
import jax.numpy as jnp
import pytest
import tiny

from flm_jax import config as config_lib
from flm_jax.experiment import Experiment
from flm_jax.host import runlog
from flm_jax.lab.benchmark import measure
from flm_jax.losses import LOSSES
from flm_jax.samplers import SAMPLERS
from flm_jax.training import cost, loop, meter, optim
from flm_jax.training import step as step_lib
from flm_jax.training.profile import Profile

H100 = "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("kind", "dtype", "peak"),
    [
        (H100, "bfloat16", 989e12),
        (H100, "float32", 495e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA GH200 480GB", "bfloat16", 989e12),
        ("NVIDIA A100-SXM4-80GB", "float32", 156e12),
        ("NVIDIA L40S", "bfloat16", 362e12),
        ("NVIDIA L40", "bfloat16", None),
        ("TPU v5 lite", "bfloat16", 197e12),
        ("TPU v5p", "float32", 459e12),
        ("TPU v5", "bfloat16", 459e12),
        ("TPU v6 lite", "bfloat16", 918e12),
        (H100, "float64", None),
        ("cpu", "float32", None),
    ],
)
def test_peaks_are_those_of_the_device_and_the_type(kind, dtype, peak):
    assert cost.known_peak(kind, dtype) == peak


def test_another_precision_of_float32_has_no_known_peak():
    with jax.default_matmul_precision("highest"):
        assert cost.known_peak(H100, "float32") is None
        assert cost.known_peak(H100, "bfloat16") == 989e12


def session_of(folder: pathlib.Path, loss: str, parts: int = 1) -> types.SimpleNamespace:
    """What a session has that the formula asks for, over shapes; teachers as the student."""
    two_times = loss in ("psd", "lsd")
    config = tiny.run_config(
        folder,
        loss={"name": loss, "options": {}},
        model__two_times=two_times,
        optim__accumulation_steps=parts,
        teacher="planned" if two_times else "",
        sampler__name="flow_map" if two_times else "euler",
    )
    config_lib.validate(config, {"loss": LOSSES, "sampler": SAMPLERS})
    experiment = Experiment(config, 20)
    frozen = measure.frozen_models(experiment)
    key = jax.random.key(0)

    def init(key):
        params = experiment.model.init(key)
        return step_lib.init_state(params, optim.optimizer(config.optim), experiment.loss)

    return types.SimpleNamespace(
        config=config,
        experiment=experiment,
        make_nets=measure.networks(experiment, frozen, cost.Calls()),
        frozen={role: jax.eval_shape(one.model.init, key) for role, one in frozen.items()},
        state_shape=jax.eval_shape(init, key),
        prompts=False,
    )


@pytest.mark.parametrize(
    ("loss", "parts", "rows"),
    [
        ("flow_matching", 1, 3 * 8),
        ("flow_matching", 4, 3 * 8),  # micro-batches add nothing
        # The student on all rows three times; targets on 4 diagonal and twice 4 other rows.
        ("psd", 1, 3 * 8 + 4 + 2 * 4),
        # ... the same, and a derivative on 4 of them.
        ("lsd", 1, 3 * 8 + 4 + 2 * 4 + 4),
    ],
)
def test_the_formula_counts_every_network_that_is_asked(tmp_path, loss, parts, rows):
    session = session_of(tmp_path, loss, parts)
    forward = sum(cost.evaluation_flops(session.config.model, 20, 12).values())
    assert meter.model_flops(session) == pytest.approx(rows * 12 * forward)


def test_what_a_line_says(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "known_peak", lambda kind, dtype: 1e9)
    counts = [{"bytes_in_use": 2**30, "peak_bytes_in_use": 2**31}, {"bytes_in_use": 2**29}]
    devices = [types.SimpleNamespace(memory_stats=lambda count=count: count) for count in counts]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    session = session_of(tmp_path, "flow_matching")
    gauges, window = meter.Meter(session), runlog.Window(8 * 12)
    assert gauges.read(window) == {"device_memory_gib": 1.0}  # nothing timed; one has no peak
    gauges.prepare()
    for seconds, waited in ((1.5, 0.0), (2.5, 1.0)):
        window.add_time(seconds, waited)
    found = gauges.read(window)
    at_peak = meter.model_flops(session) / (1e9 * jax.device_count())
    assert found.pop("mfu") == pytest.approx(at_peak / 2.0)
    assert found == {"tokens_per_second": 48.0, "data_wait_share": 0.25, "device_memory_gib": 1.0}


def test_without_a_known_peak_nothing_is_traced(tmp_path, monkeypatch):
    monkeypatch.setattr(meter, "model_flops", lambda session: pytest.fail("traced"))
    gauges = meter.Meter(session_of(tmp_path, "flow_matching"))
    gauges.prepare()
    assert gauges.read(runlog.Window(1)) == {}


@pytest.mark.parametrize(("done", "waits"), [(True, True), (False, False), (None, True)])
def test_a_batch_is_waited_for_only_if_the_device_has_nothing_to_do(monkeypatch, done, waits):
    ticks = iter([10.0, 13.0])
    monkeypatch.setattr(meter.time, "perf_counter", lambda: next(ticks))
    gauges = meter.Meter(types.SimpleNamespace(inputs=lambda mask: ("tokens", mask)))
    before = None if done is None else {"loss": types.SimpleNamespace(is_ready=lambda: done)}
    assert gauges.inputs("mask", before) == ("tokens", "mask")
    assert gauges.waited == (3.0 if waits else 0.0)


@jax.jit
def train_step(x):
    return jnp.sin(x) @ x


def run_steps(profile: Profile, steps: range) -> None:
    x = jnp.ones((8, 8))
    for n in steps:
        profile.before(n)
        with profile.named(n):
            values = train_step(x)
        profile.wait(n, values)
        profile.after(n)
    profile.close(steps[-1])


def named_steps(folder: pathlib.Path) -> list[int]:
    """The steps that a trace has under our name."""
    (path,) = folder.glob("plugins/profile/*/*.trace.json.gz")
    with gzip.open(path, "rt") as file:
        events = json.load(file)["traceEvents"]
    found = {
        int(event["args"]["step_num"])
        for event in events
        if event.get("name") == "train_step" and "step_num" in event.get("args", {})
    }
    return sorted(found)


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(std_logging.getLogger("absl"), "propagate", True)
    return lambda: [r.getMessage() for r in caplog.records if "no trace" in r.getMessage()]


def test_a_trace_has_its_steps_is_made_once_and_says_how_to_open_it(tmp_path, warnings):
    said = []
    run_steps(Profile((3, 2), tmp_path, 0, said.append), range(1, 7))
    assert [path.name for path in (tmp_path / "profile").iterdir()] == ["steps_3-4"]
    folder = tmp_path / "profile" / "steps_3-4"
    assert named_steps(folder) == [3, 4]
    (sentence,) = said
    (path,) = folder.glob("plugins/profile/*/*.trace.json.gz")
    assert f"trace of steps 3 to 4: open {path} in https://ui.perfetto.dev" in sentence
    assert f"xprof --logdir={folder}" in sentence
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    for done in (0, 5):  # the same steps again, and a session after them
        run_steps(Profile((3, 2), tmp_path, done, said.append), range(done + 1, done + 7))
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    assert len(said) == 1 and not warnings()


def test_a_run_that_ends_within_the_trace_keeps_what_there_is(tmp_path, warnings):
    (tmp_path / "profile" / "unfinished" / "plugins").mkdir(parents=True)  # of a killed one
    run_steps(Profile((2, 9), tmp_path, 0, lambda text: None), range(1, 4))
    assert named_steps(tmp_path / "profile" / "steps_2-3") == [2, 3]
    assert not (tmp_path / "profile" / "unfinished").exists()
    profile = Profile((5, 2), tmp_path, 0, lambda text: None)
    profile.before(5)
    profile.close(4)  # stopped before the step
    assert [path.name for path in (tmp_path / "profile").iterdir()] == ["steps_2-3"]
    assert not warnings()


@pytest.mark.parametrize("done", [2, 3, 90])
def test_the_step_that_compiles_is_in_no_trace(tmp_path, warnings, done):
    run_steps(Profile((3, 2), tmp_path, done, lambda text: None), range(done + 1, done + 7))
    assert not (tmp_path / "profile").exists()
    (sentence,) = warnings()
    assert f"this session begins with step {done + 1}, which compiles" in sentence
    assert f"train.profile_steps={done + 2},2 would be its first" in sentence


@pytest.mark.parametrize("call", ["start_trace", "stop_trace"])
def test_a_profiler_that_fails_ends_nothing(tmp_path, monkeypatch, warnings, call):
    def fail(*_):
        raise RuntimeError("only one trace\nmay run")

    monkeypatch.setattr(jax.profiler, "start_trace", lambda place: None)
    monkeypatch.setattr(jax.profiler, call, fail)
    run_steps(Profile((2, 2), tmp_path, 0, lambda text: pytest.fail(text)), range(1, 7))
    assert warnings() == ["no trace of steps 2 to 3: only one trace may run"]


def test_a_training_has_the_trace_and_the_gauges_in_its_log(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop.summary, "finish", lambda *_: None)
    monkeypatch.setattr(cost, "known_peak", lambda kind, dtype: 1e9)
    config = tiny.run_config(
        tmp_path, train__steps=5, train__eval_every=0, train__sample_every=0,
        train__save_every=0, train__profile_steps=(3, 2),
    )  # fmt: skip
    assert loop.train(config, tmp_path / "run") == 0
    assert named_steps(tmp_path / "run" / "profile" / "steps_3-4") == [3, 4]
    assert "trace of steps 3 to 4: open" in capsys.readouterr().out
    rows = [row for row in runlog.read(tmp_path / "run") if "loss" in row]
    assert [row["step"] for row in rows] == [2, 4, 5]
    row = rows[1]  # of steps of which one at least has been timed
    assert row["mfu"] > 0 and 0 <= row["data_wait_share"] <= 1
    assert {"learning_rate", "tokens_per_second"} <= set(row)
