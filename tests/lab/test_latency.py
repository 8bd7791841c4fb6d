"""Milliseconds: what is timed, when the search for a batch ends, the table, and what is refused."""

import dataclasses
import json
import pathlib
from unittest.mock import Mock

import jax
import pytest
from commands import call

from flm_jax.errors import UserError
from flm_jax.lab.benchmark import latencies
from flm_jax.lab.compare import latency
from flm_jax.lab.compare.latency import Latency
from flm_jax.lab.compare.results import Point

QUICKSTART = str(pathlib.Path(__file__).resolve().parents[2] / "configs/quickstart.py")
TINY = {
    "model.width": "8", "model.heads": "2", "model.depth": "1", "model.cond_dim": "4",
    "model.dtype": "float32",
}  # fmt: skip


def model(method):
    (config,) = latencies.configs(QUICKSTART, TINY, (method,)).values()
    return latencies.untrained(config, vocab=20)


def test_an_autoregressive_model_takes_one_evaluation_for_every_token_but_the_first():
    found = latency.measure(model("ar"), "", (), 2, 6, repeats=6, max_batch=2)
    assert found.evaluations == 5 and found.length == 6 and found.runs == 6
    assert found.tokens_per_s == 6 * found.sequences_per_s > 0
    assert 0 < found.p50_ms <= found.p95_ms and found.cpu_ms > 0 and found.compile_s > 0
    assert found.batch in (1, 2) and found.ended in ("throughput", "limit")
    params = 4 * 8 * 20 * 2  # table and head, float32
    assert found.memory_bytes > params and found.dtype == "float32" and found.device


def test_a_cache_saves_evaluations_of_masked_diffusion():
    found = latency.measure(model("mdlm"), "", latencies.CACHED, 40, 5, repeats=5, max_batch=1)
    assert 1 <= found.evaluations <= 6 and found.ended == "limit"  # one for every token at most


def test_steps_of_several_evaluations_are_fewer():
    network = Mock(config=Mock(sampler=Mock(fixed_point_iterations=1)))
    network.experiment.sampler.return_value.steps_for.return_value = None
    settings = (("fixed_point_iterations", 4), ("sampler_options.order", "drawn"))
    latency.chosen(network, "x", settings, 8, 6)
    options, knobs = {"order": "drawn"}, {"fixed_point_iterations": 4, "steps": (2,)}
    network.sampler.assert_called_once_with("x", options, knobs, 6)


@pytest.mark.parametrize(
    ("seconds", "memory", "limit", "batch", "ended"),
    [
        ({1: 1.0, 2: 1.2, 4: 2.0, 8: 3.9}, 0, 64, 4, "throughput"),  # 2.00, then 2.05 a second
        ({1: 1.0, 2: 1.9}, 0, 2, 2, "limit"),
        ({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}, 4, 64, 4, "memory"),
    ],
)
@pytest.mark.parametrize("refuses", [False, True])
def test_the_batch_is_doubled_while_it_pays_and_fits(
    monkeypatch, seconds, memory, limit, batch, ended, refuses
):
    """Too large is what the compiler says, or what the device refuses."""
    monkeypatch.setattr(latency, "room", lambda: memory or 1e9)

    def make(size):
        if refuses and memory and size > memory:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        run = Mock(batch=size, memory_bytes=size)
        run.timed.return_value = Mock(seconds=seconds[size])
        return run

    found = latency.fastest(make, make(1), seconds[1], limit)
    assert found == (batch, batch / seconds[batch], batch, ended)


def test_another_failure_is_not_taken_for_a_lack_of_memory():
    make = Mock(side_effect=jax.errors.JaxRuntimeError("INTERNAL: broken"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        latency.fastest(make, Mock(memory_bytes=1), 1.0, 8)


FOUND = Latency(
    evaluations=127.0, length=128, p50_ms=100.0, p95_ms=120.0, cpu_ms=90.0, runs=20, compile_s=2.0,
    batch=4, sequences_per_s=20.0, tokens_per_s=2560.0, ended="throughput", memory_bytes=10,
    device="cpu", dtype="float32",
)  # fmt: skip


def test_the_table_has_ratios_to_the_autoregressive_model_of_the_same_length():
    one_step = dataclasses.replace(FOUND, evaluations=1.0, p50_ms=25.0, tokens_per_s=5120.0)
    longer = dataclasses.replace(one_step, length=256)
    cached = Point("mdlm", 8, "ancestral_masked", latencies.CACHED)
    rows = [
        latencies.Row(Point("fmlm", 1, "flow_map"), one_step),
        latencies.Row(Point("ar", 127, "autoregressive"), FOUND),
        latencies.Row(cached, longer),
    ]
    titles, _, *lines = latencies.markdown(rows).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (titles, *lines)]
    ratios = [(line[0], line[6], line[10]) for line in cells]
    assert ratios[1:] == [("fmlm", "0.25", "2"), ("ar", "", ""), ("mdlm, cache True", "", "")]
    assert lines[1].startswith("| ar | 128 | 127 | 100.0 | 120.0 | 90.0 |")
    read = json.loads(json.dumps(rows[2].json()))
    assert read["asked_evaluations"] == 8 and read["evaluations"] == 1.0
    assert read["settings"] == [["sampler_options.cache", "True"]]


def test_every_method_has_its_points_and_mistakes_come_first(monkeypatch):
    models = {name: model(name) for name in ("mdlm", "ar")}
    measured = []
    monkeypatch.setattr(latency, "measure", lambda *given, **_: measured.append(given) or FOUND)
    kept = []
    rows = latencies.table(models, (1, 2, 2), (6, 9), each=lambda rows: kept.append(len(rows)))
    points = [(row.point.method, row.point.evaluations, bool(row.point.settings)) for row in rows]
    masked = [("mdlm", 1, False), ("mdlm", 2, False), ("mdlm", 2, True)]
    assert points == [*masked, ("ar", 5, False), *masked, ("ar", 8, False)]
    assert kept == list(range(1, 9)) and [given[4] for given in measured] == [6] * 4 + [9] * 4
    broken = model("mdlm")
    monkeypatch.setattr(broken, "sampler", Mock(side_effect=UserError("does not fit")))
    with pytest.raises(UserError, match="does not fit"):
        latencies.table({"ar": models["ar"], "mdlm": broken}, (1,), (6,))
    assert len(measured) == 8


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "give --checkpoint or --config"),
        (["--checkpoint=x", "--config=configs/quickstart.py"], "give --checkpoint or --config"),
        (["--checkpoint=x", "--methods=ar"], "omit --methods and --vocab beside --checkpoint"),
        (["--checkpoint=no/such/run"], "there is no file or folder no/such/run"),
        (["--config=configs/quickstart.py:ar", "--methods=ar"], "names a stage, and --methods=ar"),
        (["--config=configs/quickstart.py", "--methods=gan"], "no stage 'gan'"),
        (
            ["--config=configs/quickstart.py", "--evaluations=0"],
            "0 in --evaluations must be at",
        ),
        (["--config=configs/quickstart.py:residual"], "writes with its teacher; give runs instead"),
    ],
)
def test_wrong_words_get_a_sentence(words, sentence, capsys):
    assert call("benchmark", "latency", *words) == 2
    assert sentence in capsys.readouterr().err


def test_other_measurements_take_one_length(capsys):
    words = "--config=configs/bench_cpu.py", "--length=8,16", "--space=projected"
    assert call("benchmark", "train", *words) == 2
    assert "--length=8,16: only latency takes several; give one" in capsys.readouterr().err
