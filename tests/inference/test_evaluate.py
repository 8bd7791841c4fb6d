"""Evaluation: files of samples first, metrics from the files, a sentence for every wrong input."""

import io
import json
import math
import os
import pathlib
import sys
from unittest.mock import Mock

import jax
import numpy as np
import pytest
import untrained
from commands import call

from flm_jax import config as config_lib
from flm_jax import inference
from flm_jax.errors import UserError
from flm_jax.evals import artefact
from flm_jax.inference import evaluation as tool
from flm_jax.inference.evaluation import evaluate
from flm_jax.options import Evaluation
from flm_jax.sampling import knob_fields

SENTENCES = [
    f"{who} {does} {what}"
    for who in ("the cat", "a dog", "the bird", "one fish", "my aunt")
    for does in ("sees", "likes", "hears", "paints")
    for what in ("a tree", "the sea", "an old house", "nothing at all")
]


def make_run(folder: pathlib.Path, text: pathlib.Path, seed: int = 0, **model):
    """A workdir with a random tiny model, as a training run leaves it."""
    sizes = {"width": 8, "depth": 1, "heads": 2, "cond_dim": 4, "remat": False}
    config = config_lib.resolve(
        {
            "data": {
                "name": "text_files",
                "length": 16,
                "cache_dir": str(folder.parent / "cache"),
                "options": {"path": str(text)},
            },
            "tokenizer": {"name": "characters"},
            "model": sizes | model,
            "train": {"eval_rows": 10, "eval_taus": [0.25, 0.75]},
            "sampler": {"batch_size": 4, "steps": [1, 2]},
        }
    )
    return untrained.workdir(folder, config, seed)


@pytest.fixture(name="run", scope="module")
def fixture_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "text.txt").write_text("\n".join(SENTENCES * 3))
    return make_run(folder / "run", folder / "text.txt")


def options(run, **changes):
    knobs = {f.name: changes.pop(f.name) for f in knob_fields() if f.name in changes}
    given = {"checkpoint": str(run), "num_samples": 5, "splits": 0, "knobs": knobs}
    return Evaluation(**given | changes)


def test_results_are_saved_before_they_are_shown(run, tmp_path, monkeypatch, capsys):
    class Unreadable(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    output = tmp_path / "r.json"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Unreadable())
        with pytest.raises(BrokenPipeError):
            evaluate(options(run, steps=(1,), output=str(output)))
        assert json.loads(output.read_text())["step"] == 70
    capsys.readouterr()
    monkeypatch.setattr(tool.files, "write_atomically", Mock(side_effect=UserError("full")))
    with pytest.raises(UserError, match="full"):
        evaluate(options(run, steps=(1,), output=str(output)))
    assert "held-out data" in capsys.readouterr().out


def test_results_hold_what_the_files_hold(run, tmp_path, capsys):
    results = evaluate(options(run, output=str(tmp_path / "r.json"), seed=3))
    assert json.loads((tmp_path / "r.json").read_text()) == results
    assert results["samples"] == [str(tmp_path / f"r_samples/steps_0000{n}.jsonl") for n in (1, 2)]
    lines = pathlib.Path(results["samples"][1]).read_text().split("\n")
    rows = [json.loads(line) for line in lines if line]
    model = inference.load(run)
    expected = model.generate(5, 2, 3)
    assert [row["tokens"] for row in rows] == expected.tokens.tolist()
    assert [row["text"] for row in rows] == expected.texts
    for i, row in enumerate(rows):
        assert (row["index"], row["seed"], row["sampler_steps"]) == (i, 3, 2)
        assert row["checkpoint_step"] == 70 and row["sampler"]["name"] == "euler"
        assert row["weights_sha256"] == artefact.weights_sha256(model.params)
        assert row["seconds"] > 0
    names = [row["name"] for row in results["rows"]]
    assert names == ["1 step", "2 steps", "unigram sampler", "markov sampler", "held-out data"]
    values = {row["name"]: row["values"] for row in results["rows"]}
    assert values["held-out data"]["words_known"] == 1.0
    counts = [np.unique(row["tokens"], return_counts=True)[1] / 16 for row in rows]
    entropy = np.mean([-(p * np.log(p)).sum() for p in counts])
    assert values["2 steps"]["sample_entropy"] == pytest.approx(entropy)
    assert values["2 steps"]["ms_per_sample"] == pytest.approx(1000 * rows[0]["seconds"] / 5)
    keys = [column["key"] for column in results["columns"]]
    assert len(keys) == len(set(keys)) and "gen_ppl" not in keys
    printed = capsys.readouterr().out
    assert "held-out data" in printed and "held-out loss" in printed
    assert sorted(os.listdir(tmp_path)) == ["r.json", "r_samples"]


def test_what_is_outside_the_range_of_real_text_is_named(run, capsys):
    """Samples of a network that was never trained; six of them, of twelve held-out rows or more."""
    results = evaluate(options(run, steps=(1,), splits=5))
    model, *others = results["rows"]
    assert model["outside"] and all(
        row["outside"].keys() <= results["ranges"].keys() for row in others
    )
    said = results["verdict"][-1]
    assert said.startswith("1 step, outside the range of real text: ")
    assert said.count(";") == len(model["outside"]) - 1 and said in capsys.readouterr().out
    few = evaluate(options(run, steps=(1,), splits=5, num_samples=60))
    why = "no range of real text: two halves of 60 rows need 120, and there are "
    assert few["ranges"] == {} and few["verdict"][-1].startswith(why)


def test_metrics_read_the_files(run, tmp_path, monkeypatch):
    """Files from the same origin are measured as they are; the model samples no more."""
    asked = options(run, samples=str(tmp_path / "s"), steps=(2,))
    evaluate(asked)
    path = tmp_path / "s/steps_00002.jsonl"
    lines = [json.loads(line) for line in path.read_text().split("\n") if line]
    for line in lines:
        line["tokens"] = [7] * 16
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(inference.FlowModel, "generate", lambda *_, **__: pytest.fail("sampled"))
    again = evaluate(asked)
    assert again["rows"][0]["values"]["sample_entropy"] == 0.0


def test_files_of_another_origin_are_not_overwritten(run, tmp_path):
    path = tmp_path / "steps_00001.jsonl"
    models = {weights: inference.load(run, weights) for weights in (None, "raw")}

    def ask(**changes):
        asked = options(run, steps=(1,), **changes)
        model = models[asked.weights]
        (point,) = tool.operating_points(model, asked)
        return tool.draw(model, point, artefact.weights_sha256(model.params), tmp_path)

    ask()
    before = path.read_bytes()
    for changes, sentence in (
        ({"seed": 1}, "holds other samples .seed: 0 instead of 1"),
        ({"num_samples": 6}, "5 instead of 6 samples"),
        ({"temperature": 0.5}, "sampler: .* instead of"),
        ({"patience": 1}, "sampler: .* instead of"),
        ({"grid_power": 2.0}, "sampler: .* instead of"),
        ({"weights": "raw"}, "weights_sha256: "),
    ):
        with pytest.raises(UserError, match=sentence):
            ask(**changes)
    for damage, what in (
        (before[:-40], ""),
        (before.replace(b'"index": 1', b'"index": 4'), "lines are missing"),
        (before.replace(b'"tokens": [', b'"tokens": [0.5, '), "tokens are not whole numbers"),
        (before.replace(b'"seed": 0', b'"seed": 9', 1), "its lines have different origins"),
        (b"{}", "'index'"),
        (b"", "lines are missing"),
    ):
        path.write_bytes(damage)
        with pytest.raises(UserError, match=rf"not a whole file of samples \(.*{what}.*remove it"):
            ask()


def test_words_that_are_no_options_and_no_checkpoint(capsys):
    for words, sentence in (
        (["--checkpoint=x", "more"], "unexpected argument 'more'; options are written --name="),
        ([], "--checkpoint=PATH is missing; give a run's --workdir or"),
    ):
        assert call("evaluate", *words) == 2
        assert sentence in capsys.readouterr().err


def test_texts_with_odd_line_breaks_survive(tmp_path):
    origin = {"seed": 1}
    texts = ["a\u2028b\x85c\nd", '"quoted" \u00e9']
    made = artefact.Artefact(origin, np.arange(6, dtype=np.int32).reshape(2, 3), texts, 0.5)
    artefact.write(tmp_path / "s.jsonl", made, remark="x")
    found = artefact.read(tmp_path / "s.jsonl", ["seed"])
    assert (found.origin, found.texts, found.seconds) == (origin, texts, 0.5)
    np.testing.assert_array_equal(found.tokens_NL, made.tokens_NL)


def test_nothing_is_kept_unless_asked(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = evaluate(options(run, steps=(1,)))
    assert results["samples"] == [] and os.listdir(tmp_path) == []


def test_held_out_loss_of_a_network_that_knows_nothing(run):
    """All logits of the raw weights are 0, so the loss is ln V at any time."""
    model = inference.load(run, "raw")
    results = evaluate(options(run, weights="raw", steps=(1,)))["held_out"]
    expected = math.log(model.experiment.vocab_size)
    assert results["taus"] == [0.25, 0.75] and results["rows"] == 10
    np.testing.assert_allclose(results["losses"], [expected] * 2, rtol=1e-6)


def test_held_out_loss_does_not_depend_on_the_batches(run):
    model = inference.load(run)
    data = tool.training_data(model)
    whole, parts = (
        tool.held_out_loss(model, data, options(run, batch_size=size)) for size in (10, 3)
    )
    np.testing.assert_allclose(whole["losses"], parts["losses"], rtol=1e-5)
    assert whole["losses"][1] != whole["losses"][0]


def test_hash_tells_weights_apart():
    tree = {"a": np.arange(4.0, dtype=np.float32), "b": {"c": np.zeros((2, 2), np.float32)}}
    same = {"b": {"c": jax.numpy.zeros((2, 2))}, "a": jax.numpy.arange(4.0)}
    other = {**tree, "a": tree["a"].reshape(2, 2)}
    digest = artefact.weights_sha256(tree)
    assert digest == artefact.weights_sha256(same) != artefact.weights_sha256(other)
    assert digest != artefact.weights_sha256({**tree, "a": tree["a"] + 1e-6})


def test_without_the_training_text(run, tmp_path, caplog):
    """What can be computed is computed, and a sentence says what is left out and why."""
    text = tmp_path / "text.txt"
    text.write_text("\n".join(SENTENCES * 3))
    moved = make_run(tmp_path / "run", text)
    text.unlink()
    results = evaluate(options(moved, steps=(1,)))
    assert [row["name"] for row in results["rows"]] == ["1 step"]
    assert results["held_out"] is None
    values = results["rows"][0]["values"]
    between = {key for key in values if key.startswith(("distinct_", "self_"))}
    assert between >= {"distinct_4"}
    why = "there is no training text and no --truth, so no judge and no real text"
    assert results["verdict"] == [f"no verdict: {why}"] and results["judge"] is None
    assert set(values) - between == {"sample_entropy", "ms_per_sample"}
    assert "text statistics and held-out loss are left out" in caplog.text
    nameless = Mock(config=config_lib.resolve({}))
    assert tool.training_data(nameless) is None
    assert "the checkpoint does not name its training text, so text stat" in caplog.text
    assert str(text) in caplog.text


def test_scorer_gives_both_perplexities(run, shared):
    scorer = str(shared / "golden/text/tiny_gpt2")
    results = evaluate(options(run, steps=(1,), scorer=scorer))
    keys = [column["key"] for column in results["columns"]]
    assert {"gen_ppl", "gen_ppl_official"} <= set(keys) and len(keys) == len(set(keys))
    held_out = next(row for row in results["rows"] if row["kind"] == "data")["values"]
    assert held_out["gen_ppl"] > 1 and held_out["gen_ppl_official"] > 1


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"steps": ()}, "steps is empty"),
        ({"steps": (1, 0)}, "0 in steps must be at least 1"),
        ({"num_samples": 0}, "num_samples=0 must be at least 1"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0 must be at least 0"),
        ({"top_p": 0.0}, "top_p=0.0 must be greater than 0"),
        ({"patience": -1}, "patience=-1 must be at least 0"),
        ({"grid_power": -1.0}, "grid_power=-1.0 must be greater than 0"),
        ({"gamma": 0.5}, "gamma=0.5 has no effect on the sampler Euler; leave it at 0"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"sampler": "eular"}, "unknown sampler 'eular'; did you mean euler"),
        ({"weights": "best"}, "weights='best' is unknown"),
        ({"step": 71}, "no checkpoint of step 71; it has 70"),
        ({"length": 9}, "a workdir, which knows its length"),
        ({"checkpoint": "no/such/run"}, "there is no file or folder no/such/run"),
        ({"scorer": "no/such/scorer"}, "no/such/scorer"),
        ({"output": "no/such/folder/r.json"}, "there is no folder no/such/folder; make it first"),
        ({"output": "."}, "--output=. is a folder"),
        ({"samples": "setup.cfg"}, "--samples=setup.cfg is a file"),
        ({"truth": "no/such/truth"}, "there is no file or folder no/such/truth"),
        ({"truth": "setup.cfg"}, "setup.cfg"),
        ({"sweep": "temprature=1"}, "'temprature' is no knob; take temperature, "),
        ({"sweep": "temperature"}, "must be a knob and its values, as temperature=0.7,0.85,1"),
        ({"sweep": "patience=0.5"}, "must be a knob and its values, as patience="),
        ({"sweep": "temperature=1,1"}, "names a value twice"),
        ({"sweep": "top_p=1,2"}, "top_p=2.0 must be at most 1"),
        ({"sweep": "gamma=0,0.5"}, "gamma=0.5 has no effect on the sampler Euler"),
        ({"sweep": "top_p=1", "top_p": 0.5}, "--top_p and --sweep=top_p=1 both set top_p; omit"),
    ],
)
def test_wrong_inputs_get_a_sentence(run, tmp_path, monkeypatch, changes, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "setup.cfg").write_text("mine")
    asked = {"steps": (1,), "output": "r.json", **changes}
    with pytest.raises(UserError, match=sentence) as caught:
        evaluate(options(run, **asked))
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["setup.cfg"]


def test_the_command(run, tmp_path, monkeypatch, capsys):
    output = tmp_path / "r.json"
    words = [f"--checkpoint={run}", "--num_samples=2", "--steps=1,2", "--step=70"]
    words.append(f"--output={output}")
    monkeypatch.setattr(sys, "argv", ["flm", "evaluate", *words])
    assert call("evaluate", *words) == 0
    said = capsys.readouterr().out
    assert "2 steps" in said and f"wrote {output}" in said
    assert "\nno verdict: distinct-4 compares 48 samples with each other, and there are 2\n" in said
    results = json.loads(output.read_text())
    assert results["num_samples"] == 2
    assert results["command"].endswith(f"evaluate {' '.join(words)}")


def test_a_swept_knob_is_one_curve(run, tmp_path):
    asked = options(
        run, steps=(1,), num_samples=48, sweep="temperature=0,1", samples=str(tmp_path / "s")
    )
    results = evaluate(asked)
    names = ["1 step, temperature 0", "1 step, temperature 1"]
    rows = results["rows"][:2]
    assert [row["name"] for row in rows] == names
    assert [(row["steps"], row["method"]) for row in rows] == [(1, "1 step")] * 2
    files = [f"steps_00001_temperature_{value}.jsonl" for value in (0, 1)]
    assert results["samples"] == [str(tmp_path / "s" / name) for name in files]
    own = inference.load(run).generate(48, 1, 0, temperature=1.0)
    lines = [json.loads(line) for line in (tmp_path / "s" / files[1]).read_text().splitlines()]
    assert [line["tokens"] for line in lines] == own.tokens.tolist()
    said = results["verdict"]
    assert [text.split(": ")[0] for text in said[:2]] == names
    assert said[2].startswith("1 step at the diversity of real text, interpolated over the knob: ")


def test_evaluations_are_shown_beside_steps(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES * 3))
    run = make_run(tmp_path / "run", tmp_path / "text.txt", self_conditioning=True)
    results = evaluate(options(run, steps=(1, 2), fixed_point_iterations=3))
    names = [row["name"] for row in results["rows"] if row["kind"] == "model"]
    assert names == ["1 step (3 evaluations)", "2 steps (6 evaluations)"]
    assert [row["steps"] for row in results["rows"] if row["kind"] == "model"] == [3, 6]
    assert "2 steps (6 evaluations)" in capsys.readouterr().out
