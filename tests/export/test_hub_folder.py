"""`flm export --format=hub`: what a folder holds, that it is read back, and from a hub, too."""

import json
import re

import commands
import fake_hub
import numpy as np
import pytest
import untrained

import flm_jax
from flm_jax import config as config_lib
from flm_jax import inference, tokenizers
from flm_jax.errors import UserError
from flm_jax.export import hub
from flm_jax.inference import conversion
from flm_jax.interop import release
from flm_jax.training import sources


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(workdir, its released folder)."""
    folder = tmp_path_factory.mktemp("made")
    told = {"model__self_conditioning": True, "model__mlp": "swiglu"}
    told["train__compilation_cache"] = "/secret/m"
    workdir = untrained.of_loss(folder, "psd", "flow_map", {"given": "uniform"}, **told)
    run = {
        "command": f"flm train --config=mine.py --workdir={workdir}",
        "corpus": {"train_rows": 1234, "train_tokens": 14808},
        "hardware": {"device": "cpu", "devices": 1},
    }
    columns = [{"key": "a", "title": "nats", "meaning": "", "better": "lower", "digits": 2}]
    row = {"name": "FMLM, 8 steps", "kind": "model", "values": {"a": 4.25}}
    results = {"step": untrained.STEP, "columns": columns, "rows": [row], "verdict": ["Good text."]}
    (workdir / "run.json").write_text(json.dumps(run))
    (workdir / "results.json").write_text(json.dumps(results))
    words = f"--checkpoint={workdir}", "--format=hub", f"--output={folder / 'released'}"
    assert not commands.call("export", *words)
    return workdir, folder / "released"


def copied(made, tmp_path):
    for path in made[1].rglob("*"):
        if path.is_file():
            target = tmp_path / "copy" / path.relative_to(made[1])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return tmp_path / "copy"


def changed(folder, change):
    about = json.loads((folder / "config.json").read_text())
    change(about)
    (folder / "config.json").write_text(json.dumps(about))


def test_the_model_comes_back_as_it_was(made):
    workdir, folder = made
    run, released = inference.load(workdir), flm_jax.load(folder)
    assert repr(released) == repr(run) and released.tokenizer.fingerprint
    for (name, one), (_, other) in zip(
        release.flat.leaves(run.params), release.flat.leaves(released.params), strict=True
    ):
        np.testing.assert_array_equal(one, other, err_msg=name)
    assert released.config.model == run.config.model
    assert released.config.loss == run.config.loss and released.config.data.length == 12


def test_nothing_tells_where_it_was_trained(made):
    workdir, folder = made
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "README.md"} < names
    for name in names:
        content = (folder / name).read_bytes()
        assert str(workdir.parent).encode() not in content and b"/secret" not in content, name
    config = json.loads((folder / "config.json").read_text())["config"]
    assert config["data"]["options"]["path"] == "corpus.txt" and (
        config["train"]["compilation_cache"] == "workdir"
    )
    assert release.cut("--a=/b/c") == "--a=c" and release.cut("C:\\d\\e") == "e"
    assert release.cut("a/b") == "a/b" and release.cut("--lr=3e-4") == "--lr=3e-4"


def test_the_card_says_what_is_known_and_asks_for_a_licence(made):
    card = (made[1] / "README.md").read_text()
    head, _, text = card.removeprefix("---\n").partition("---\n")
    assert "license: FILL_IN\n" in head and "library_name: flm_jax" in head
    for words in (
        "**Licence:** FILL_IN", 'flm_jax.load("hf://USER/REPO")', "data set: text_files",
        "train rows: 1,234", "flm train --config=mine.py --workdir=psd", "Loss `psd`",
        "FMLM, 8 steps", "4.25", "Good text.", "1 x cpu",
    ):  # fmt: skip
        assert words in text, words
    model = inference.load(made[0])
    bare = hub.card(model, "raw", {}, {})
    assert "## Evaluation" not in bare and "(raw, training step 70)" in bare
    assert not re.search("None|{|}", bare)


def test_results_of_other_weights_are_left_out(made, tmp_path):
    hub.write(inference.load(made[0], weights="raw"), tmp_path / "raw", "raw", made[0])
    assert "Evaluation" not in (tmp_path / "raw" / "README.md").read_text()
    assert flm_jax.load(tmp_path / "raw", weights="raw").step == untrained.STEP
    with pytest.raises(UserError, match="holds the weights 'raw' only; omit 'ema'"):
        flm_jax.load(tmp_path / "raw", weights="ema")


def test_half_the_size_is_float32_again_when_read(made, tmp_path, capsys):
    workdir, whole = made
    words = f"--checkpoint={workdir}", "--dtype=float16"
    assert not commands.call("export", *words, "--format=hub", f"--output={tmp_path / 'half'}")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "half", whole)]
    assert sizes[0] < 0.6 * sizes[1]
    run, half = inference.load(workdir), flm_jax.load(tmp_path / "half")
    pairs = zip(release.flat.leaves(run.params), release.flat.leaves(half.params), strict=True)
    for (name, exact), (_, rounded) in pairs:
        assert rounded.dtype == np.float32, name
        np.testing.assert_array_equal(rounded, np.asarray(exact).astype(np.float16), err_msg=name)
    assert commands.call("export", *words, "--format=onnx", f"--output={tmp_path / 'x'}") == 2
    assert "--dtype=float16 is for --format=hub" in capsys.readouterr().err
    large = release.Release(run.config, run.tokenizer, {"a/b": np.float32([1e6])}, 0, "ema")
    with pytest.raises(UserError, match="a/b has values that float16 cannot hold"):
        release.write(tmp_path, large, "0", "float16")


def test_a_run_can_start_from_it_but_nothing_is_converted(made, tmp_path):
    source = sources.read(str(made[1]), None, "init_from")  # with its own tokenizer
    assert (source.step, source.kind) == (untrained.STEP, "flow map")
    with pytest.raises(UserError, match="wrote, which load, generate and evaluate read as it is"):
        conversion.convert(str(made[1]), str(tmp_path / "converted"))


def test_a_released_denoiser_is_the_teacher_of_a_correction(made, tmp_path):
    """Of a correction the workdir names its denoiser; it may lie in a released folder."""
    config = tmp_path / "config"
    denoiser = untrained.of_loss(config, "flow_matching", "euler")
    hub.write(inference.load(denoiser), tmp_path / "released")
    workdir = untrained.of_loss(tmp_path, "residual", "two_model", teacher="released")
    model = flm_jax.load(workdir, teacher=tmp_path / "released")
    assert model.frozen["teacher"].step == untrained.STEP


def test_what_is_damaged_or_does_not_fit_is_refused(made, tmp_path):
    folder = copied(made, tmp_path)

    def sentence(**options):
        with pytest.raises(UserError) as error:
            flm_jax.load(folder, **options)
        assert len(str(error.value).splitlines()) == 1
        return str(error.value)

    assert "knows its length; omit length" in sentence(length=12)
    assert "knows its step; omit step" in sentence(step=3)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-7])
    assert "is not the file that was written (its SHA-256)" in sentence()
    weights.write_bytes(content)
    changed(folder, lambda about: about["config"]["model"].update(width=32))
    assert "has blocks/" in sentence()
    changed(folder, lambda about: about.pop("config"))
    assert "config.json is damaged" in sentence()


def test_no_code_is_run_from_a_model(made, tmp_path):
    """A config can name MODULE:CLASS, which our registries import; not that of a stranger."""
    folder = copied(made, tmp_path)
    changed(folder, lambda about: about["config"]["loss"].update(name="antigravity:Loss"))
    with pytest.raises(UserError, match="loss.name is antigravity:Loss, .* code is not run"):
        flm_jax.load(folder)
    changed(folder, lambda about: about["config"]["loss"].update(name="psd"))
    meta = folder / "tokenizer" / "flm_tokenizer.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"name": "antigravity:Tokens"}))
    with pytest.raises(UserError, match="the tokenizer's name is antigravity:Tokens"):
        flm_jax.load(folder)
    config = config_lib.from_json({"sampler": {"name": "mine:Sampler"}})
    with pytest.raises(UserError, match="sampler.name is mine:Sampler.*cannot be loaded elsewhere"):
        tokenizer = tokenizers.load(made[1] / "tokenizer")
        release.write(tmp_path, release.Release(config, tokenizer, {}, 0, "ema"), "0")


def test_a_correction_and_sizes_are_refused(made, capsys, tmp_path):
    words = f"--checkpoint={made[0]}", "--format=hub", f"--output={tmp_path / 'x'}"
    assert commands.call("export", *words, "--length=12") == 2
    assert "--length is for graphs" in capsys.readouterr().err
    model = inference.load(made[0])
    section = config_lib.changed(model.config, {"loss.name": "residual", "loss.options": {}})
    model.experiment = type(model.experiment)(section, model.experiment.vocab_size)
    with pytest.raises(UserError, match="correction of a denoiser writes with its teacher"):
        hub.write(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_released_model_is_loaded_from_a_hub(made, tmp_path, monkeypatch, capsys):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with fake_hub.serving(made[1]) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        model = flm_jax.load("hf://someone/names@v1")
        assert repr(model) == repr(inference.load(made[0]))
    # In the cache now: everything that reads a model takes it, also without the hub.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    address = f"--checkpoint=hf://someone/names@{fake_hub.SHA}"
    assert not commands.call("generate", address, "--steps=1", "--num_samples=2")
    assert "--- 1 step" in capsys.readouterr().out
    assert not commands.call("export", address, "--format=hub", f"--output={tmp_path / 'again'}")
    one, other = ((f / "model.safetensors").read_bytes() for f in (made[1], tmp_path / "again"))
    assert one == other


def test_a_folder_is_pushed_and_loaded_again(made, tmp_path, monkeypatch, capsys):
    pytest.importorskip("huggingface_hub", reason="the extra [hub]")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    folder, empty = copied(made, tmp_path), tmp_path / "empty"
    empty.mkdir()
    (folder / "notes.txt").write_text("mine")  # is not part of a release

    def push(repo="someone/names", source=folder):
        code = commands.call("push", f"--folder={source}", f"--repo={repo}")
        shown = capsys.readouterr()
        return code, shown.err if code else shown.out

    with fake_hub.serving(empty) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        server.writer = "secret"
        assert push(source=empty)[1].startswith(f"error: {empty} is no folder that flm export")
        assert "does not say the licence yet; replace FILL_IN" in push()[1]
        card = folder / "README.md"
        card.write_text(card.read_text().replace("FILL_IN", "mit"))
        assert "is not the address of a model" in push("hf://names")[1]
        assert "HF_TOKEN" in push()[1] and not server.files
        monkeypatch.setenv("HF_TOKEN", "wrong")
        assert "refuses to write someone/names (403)" in push()[1]
        monkeypatch.setenv("HF_TOKEN", "secret")
        server.broken = 500
        assert "nothing was committed, so try again later" in push()[1] and not server.files
        server.broken = 0
        assert "has no branch other" in push("hf://someone/names@other")[1]
        code, shown = push()
        assert not code and 'flm_jax.load("hf://someone/names")' in shown
        assert server.files.keys() == {
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.is_file() and path.name != "notes.txt"
        }
        model = flm_jax.load("hf://someone/names")
    assert repr(model) == repr(flm_jax.load(folder))
