"""`flm export`: whole folders, whose example draws the library's texts without the library."""

import json
import os
import pathlib
import re
import subprocess
import sys

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import untrained

from flm_jax import inference
from flm_jax.errors import UserError
from flm_jax.export import folder as folder_lib
from flm_jax.flow.at import STUDENT
from flm_jax.samplers.euler import Euler
from flm_jax.samplers.flow_map import FlowMap

# A Python in which these cannot be imported.
WITHOUT = """
import runpy, sys
program, without, *sys.argv = sys.argv[1], sys.argv[2].split(","), *sys.argv[1:2], *sys.argv[3:]
sys.modules.update(dict.fromkeys(without))
runpy.run_path(program, run_name="__main__")
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    told = {"model__self_conditioning": True, "space": "projected"}
    untrained.of_loss(folder, "psd", "flow_map", {"given": "uniform"}, **told)
    untrained.of_loss(folder, "flow_matching", "euler", space="onehot")
    return folder


def drawn(path, steps, seed):
    """What the example prints: lines of confidence and text."""
    onnx = (path / "jump.onnx").exists()
    lacking = "flm_jax,flax,orbax" + ",jax,onnx" * onnx + ",onnxruntime" * (not onnx)
    words = [sys.executable, "-c", WITHOUT, str(path / "sample.py"), lacking, str(steps), str(seed)]
    env = os.environ | {"PYTHONPATH": "", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(words, capture_output=True, text=True, cwd=path.parent, env=env)
    assert done.returncode == 0, done.stderr
    return [line.split(" ", 1) for line in done.stdout.splitlines()]


def of_library(workdir, rule, steps, seed):
    """The same with the library: its sampler, from the same noise."""
    model = inference.load(workdir)
    space, net = model.space(), model.net(model.params, diagonal=False)
    shape = 4, model.config.data.length, space.noise_width
    raw = jnp.asarray(np.random.default_rng(seed).standard_normal(shape, "float32"))
    at = tiny.at({STUDENT: net}, lambda tables: space, model.experiment.clock)
    keys = jax.random.split(jax.random.key(0), 4)

    @jax.jit
    def write(raw):
        options = dict(length=shape[1], steps=steps, start=raw, trajectory=True)
        return tiny.write(rule, at, keys, **options)

    tokens, path = write(raw)
    texts = ["".join(map(model.tokenizer.piece, row)) for row in np.asarray(tokens)]
    sure = path.confidence_SBL[-1].mean(-1)
    return [[f"{one:.2f}", text] for one, text in zip(sure, texts, strict=True)]


@pytest.mark.parametrize("form", folder_lib.FORMATS)
@pytest.mark.parametrize(("loss", "rule"), [("psd", FlowMap()), ("flow_matching", Euler())])
def test_the_example_draws_the_texts_of_the_library(runs, form, loss, rule, capsys):
    pytest.importorskip("onnxruntime" if form == "onnx" else "flatbuffers")
    output = runs / f"{loss}_{form}"
    assert not commands.call(
        "export", f"--checkpoint={runs / loss}", f"--format={form}", f"--output={output}"
    )
    assert f"wrote {output}" in capsys.readouterr().out
    found, expected = drawn(output, 3, 5), of_library(runs / loss, rule, 3, 5)
    assert [text for _, text in found] == [text for _, text in expected]
    for (sure, _), (other, _) in zip(found, expected, strict=True):
        assert abs(float(sure) - float(other)) <= 0.011
    assert len({text for _, text in found}) > 1

    readme, named = (output / "README.md").read_text(), set()
    for cell in re.findall(r"^\| `([\w.]+)` \|", readme, re.MULTILINE):
        named.add(cell)
    about = json.loads((output / "model.json").read_text())
    names = {one["name"] for one in about["inputs"] + about["outputs"]}
    assert named == names | {path.name for path in output.iterdir()} - {"README.md"}
    assert about["bos_id"] == 1 and about["training_step"] == untrained.STEP
    assert len((output / "sample.py").read_text().splitlines()) <= 32


@pytest.mark.parametrize(
    ("sizes", "wrong"), [((None, None), (2, 13)), ((2, 9), (2, 8))], ids=["open", "fixed"]
)
def test_stablehlo_of_other_sizes_is_refused(tmp_path, sizes, wrong):
    """Not computed wrongly: more tokens than there are positions, other sizes than asked for."""
    from jax import export

    pytest.importorskip("flatbuffers")
    untrained.of_loss(tmp_path, "flow_matching", "euler", model__learned_positions=12)
    model = inference.load(tmp_path / "flow_matching")
    folder_lib.write(model, "stablehlo", tmp_path / "made", *sizes)
    jump = export.deserialize(bytearray((tmp_path / "made" / "jump.stablehlo").read_bytes()))
    weights = dict(np.load(tmp_path / "made" / "weights.npz"))

    def call(batch, length):
        tau_s, tau_t = np.zeros(batch, np.float32), np.ones(batch, np.float32)
        state = np.zeros((batch, length, model.space().noise_width), np.float32)
        return jump.call(weights, {"state": state, "tau_s": tau_s, "tau_t": tau_t})

    assert call(2, 9)["tokens"].shape == (2, 9)
    with pytest.raises(ValueError, match="L|shape"):
        call(*wrong)


def test_what_is_wrong_is_said_before_anything_is_written(runs, tmp_path, capsys, monkeypatch):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    checkpoint = f"--checkpoint={runs / 'psd'}"
    wrong = {
        (f"--output={taken}", "--format=stablehlo"): f"{taken} exists already",
        ("--output=x", "--format=tflite"): "format=tflite is not known; use onnx or stablehlo",
        ("--format=onnx",): "--output=FOLDER is missing",
        ("--output=x",): "--format is missing",
        ("--output=x", "--format=onnx", "--batch=0"): "batch=0 must be at least 1",
    }
    monkeypatch.chdir(tmp_path)
    for words, sentence in wrong.items():
        assert commands.call("export", checkpoint, *words) == 2
        assert sentence in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for form, package in (("onnx", "onnx"), ("stablehlo", "flatbuffers")):
        sentence = rf"{form} needs the package {package}, .* pip install 'flm_jax\[export\]'"
        with pytest.raises(UserError, match=sentence):
            folder_lib.check(form)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_the_page_shows_the_example_that_is_shipped():
    page = pathlib.Path(__file__).resolve().parents[2] / "docs" / "exporting.md"
    assert f"```python\n{folder_lib.example('onnx')}```" in page.read_text()
