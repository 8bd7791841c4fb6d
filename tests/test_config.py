"""Config: every mistake gets one sentence; what is right arrives typed, frozen and unchanged."""

import dataclasses
import pathlib
import subprocess
import sys
import textwrap
import typing

import pytest
from absl import flags

from flm_jax import config as config_lib
from flm_jax.config import Config, command_line, settings
from flm_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIGS = sorted(ROOT.glob("configs/*.py"))


@dataclasses.dataclass(frozen=True)
class Plain:
    scale: float = 1.0
    repeats: int = 1
    kinds: tuple[str, ...] = ()
    mode: typing.Literal["fast", "slow"] = "fast"
    limit: int | None = None


@dataclasses.dataclass(frozen=True)
class Distilling:
    path: str
    needs_teacher = True
    needs_two_times = True


TABLES = {
    "loss": {"flow_matching": Plain, "psd": Distilling},
    "sampler": {"euler": Plain},
    "data": {"names": Plain},
    "tokenizer": {"letters": Plain},
    "eval": {"entropy": Plain},
}


def make(**overrides):
    """The default config with names that TABLES knows; a__b=1 means a.b = 1."""
    tree = config_lib.to_dict(Config())
    tree["data"]["name"], tree["tokenizer"]["name"] = "names", "letters"
    for key, value in overrides.items():
        *parents, last = key.split("__")
        node = tree
        for parent in parents:
            node = node[parent]
        node[last] = value
    return config_lib.resolve(tree)


def sentence(function, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


@pytest.fixture
def config_file(tmp_path):
    """Writes a config file and returns its path as text."""

    def write(text, name="mine.py"):
        (tmp_path / name).write_text(textwrap.dedent(text))
        return str(tmp_path / name)

    return write


# The files


def test_common_shows_every_knob_with_its_default():
    shown = config_lib.load("configs/common.py")
    for key, _ in settings.knobs():
        assert settings.value_at(shown, key) == settings.value_at(Config(), key), key
    source = (ROOT / "configs/common.py").read_text()
    missing = [key for key, _ in settings.knobs() if key.rpartition(".")[2] not in source]
    assert not missing


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_is_valid(path):
    resolved = config_lib.load(str(path))
    config_lib.validate(resolved, {})
    assert config_lib.validate_devices(resolved, 8) == (8, 1, 1)
    assert path.stem == "common" or (resolved.data.name and resolved.tokenizer.name)


def test_stage_after_the_colon():
    assert config_lib.load("configs/python_prose.py:characters").tokenizer.name == "characters"
    assert "no stage 'distil'" in sentence(config_lib.load, "configs/quickstart.py:distil")


def test_config_files_work_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p and pathlib.Path(p) != ROOT])
    for name in [name for name in sys.modules if name.split(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    assert config_lib.load(str(ROOT / "configs/quickstart.py")).data.name == "unicode_names"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = (", "mine.py, line 1: SyntaxError"),
        ("\n\nimport nothing_of_the_kind", "mine.py, line 3: ModuleNotFoundError"),
        ("def get_config():\n    return 1 / 0", "mine.py, line 2: ZeroDivisionError"),
        ("config = 3", "must define get_config()"),
        ("def get_config():\n    return 3", "must return a ConfigDict"),
        ("def get_config():\n    pass", "must return a ConfigDict"),
    ],
)
def test_broken_config_files(config_file, text, expected):
    assert expected in sentence(config_lib.load, config_file(text))


def test_missing_config_files(config_file, tmp_path):
    assert "did you mean configs/quickstart.py?" in sentence(config_lib.load, "quickstrat.py")
    assert "is a folder" in sentence(config_lib.load, str(tmp_path))
    path = config_file("def get_config():\n    return {}")
    assert "takes no argument, but got 'x'" in sentence(config_lib.load, path + ":x")


# Values


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("optim.learning_rate", "1e-3", 1e-3),
        ("optim.learning_rate", 1, 1.0),
        ("train.steps", "1e6", 1_000_000),
        ("train.steps", "1_000", 1000),
        ("train.steps", 5.0, 5),
        ("model.two_times", "true", True),
        ("model.two_times", "0", False),
        ("sampler.steps", "1,8,32", (1, 8, 32)),
        ("sampler.steps", "(1, 8)", (1, 8)),
        ("sampler.steps", [4, 2], (4, 2)),
        ("sampler.steps", "16", (16,)),
        ("sampler.steps", 16, (16,)),
        ("train.eval_taus", "0.5,1", (0.5, 1.0)),
        ("evals", "entropy", ("entropy",)),
        ("evals", "", ()),
        ("teacher", pathlib.Path("a/b"), "a/b"),
        ("data.options", "{'path': 'x'}", {"path": "x"}),
    ],
)
def test_values_are_converted(key, given, expected):
    value = settings.value_at(config_lib.load("configs/common.py", {key: given}), key)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("optim.learning_rate", "fast", "optim.learning_rate must be a number, not 'fast' (str)"),
        ("optim.learning_rate", "nan", "a number and finite"),
        ("optim.learning_rate", True, "must be a number, not True"),
        ("train.steps", "1.5", "train.steps must be an integer, not '1.5'"),
        ("train.steps", None, "must be an integer, not None"),
        ("model.two_times", "maybe", "model.two_times must be true or false"),
        ("model.two_times", 2, "must be true or false, not 2"),
        ("sampler.steps", "1,x", "sampler.steps[1] must be an integer, not 'x'"),
        ("sampler.steps", {1: 2}, "must be a list such as 1,8,32"),
        ("loss.name", 3, "loss.name must be text"),
        ("data.options", "path", "data.options must be a dict"),
        ("train", "3", "config section 'train' is '3' but must be a section with"),
        ("optim.learnin_rate", "1", "did you mean optim.learning_rate?"),
        ("train.learning_rate", "1", "did you mean optim.learning_rate?"),
        ("optim.lr", "1", "section 'optim' has: learning_rate, beta1"),
        ("optm.beta1", "1", "unknown config key 'optm'; did you mean optim?"),
        ("seed.x", "1", "seed is a value, not a section"),
    ],
)
def test_wrong_values_and_keys(key, given, expected):
    assert expected in sentence(config_lib.load, "configs/common.py", {key: given})


def test_options_take_any_key_and_keep_declared_text(config_file):
    path = config_file("def get_config():\n    return {'data': {'options': {'path': '', 'n': 1}}}")
    overrides = {"data.options.path": "2024", "data.options.n": "2", "data.options.new": "a.txt"}
    options = config_lib.load(path, overrides).data.options
    assert options == {"path": "2024", "n": 2, "new": "a.txt"}


def test_config_is_frozen_and_hashable():
    assert hash(make()) == hash(make()) and make() == make()
    assert make(seed=2) != make() and make(data__options={"a": 1}) != make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().optim.beta1 = 0.5


def test_json_round_trip():
    config = make(sampler__steps=(3, 1), data__options={"path": ["a", "b"], "x": 0.1})
    assert config_lib.from_json(config_lib.to_json(config)) == config
    assert config_lib.from_json(config_lib.to_dict(config)) == config
    assert "not JSON" in sentence(config_lib.from_json, "{")


def test_differences_name_what_makes_another_experiment():
    old = make(data__options={"path": ("a",), "gone": 1})
    new = make(optim__beta1=0.5, data__options={"path": ["a"], "fresh": 2}, train__steps=7)
    assert config_lib.differences(old, new) == [
        "data.options.fresh: (absent) -> 2",
        "data.options.gone: 1 -> (absent)",
        "optim.beta1: 0.9 -> 0.5",
    ]
    assert "train.steps: 1000000 -> 7" in config_lib.differences(old, new, everything=True)
    assert not config_lib.differences(old, old)


def test_changeable_keys_exist_and_spare_the_numbers():
    keys = [key for key, _ in settings.knobs()]
    for free in settings.CHANGEABLE:
        assert any(key == free or key.startswith(free + ".") for key in keys), free
    for fixed in ("seed", "train.batch_size", "model.width", "optim.learning_rate", "data.name"):
        assert not settings.is_changeable(fixed)


# Tables


def test_build_converts_options_and_adds_what_the_code_supplies():
    row = config_lib.build({"p": Plain}, "p", {"scale": 2, "kinds": "a,b", "limit": 3}, "loss")
    assert row == Plain(2.0, 1, ("a", "b"), "fast", 3) and type(row.scale) is float
    assert config_lib.build({"d": Distilling}, "d", {}, "loss", path="x").path == "x"


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("plan", {}, "unknown loss 'plan'; did you mean plain? (there are: distil, plain)"),
        ("", {}, "no loss is named in the config (there are: distil, plain)"),
        ("plain", {"scal": 1}, "no option 'scal'; did you mean scale? (its options: scale, rep"),
        ("plain", {"scale": "x"}, "option 'scale' of loss 'plain' must be a number, not 'x'"),
        ("plain", {"mode": "medium"}, "'medium' is not one of fast, slow"),
        ("plain", {"limit": "x"}, "must be an integer, not 'x'"),
        ("distil", {}, "loss 'distil' needs options.path"),
        ("distil", {"path": "y", "length": 3}, "has no option 'length'"),
    ],
)
def test_build_explains(name, options, expected):
    table = {"plain": Plain, "distil": Distilling}
    assert expected in sentence(config_lib.build, table, name, options, "loss")


def test_options_that_the_code_supplies_are_not_the_users():
    text = sentence(config_lib.build, {"d": Distilling}, "d", {"path": "y"}, "loss", path="x")
    assert "has no option 'path'" in text


# Validation


def test_defaults_and_edges_are_valid():
    config_lib.validate(make(), TABLES)
    config_lib.validate(make(data__length=3, model__dropout=0, sampler__top_p=1), TABLES)
    config_lib.validate(
        make(loss={"name": "psd", "options": {"path": "x"}}, teacher="t", model__two_times=True),
        TABLES,
    )


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"model__heads": 7}, "model.heads=7 does not divide model.width=768; try model.heads=6"),
        ({"model__width": 36}, "heads of odd size 3"),
        ({"data__length": 2}, "data.length=2 must be at least 3"),
        ({"sampler__steps": ()}, "sampler.steps is empty; give at least one value"),
        ({"sampler__steps": (1, 0)}, "0 in sampler.steps must be at least 1"),
        ({"train__eval_taus": (0.5, 1.5)}, "1.5 in train.eval_taus must be at most 1"),
        ({"model__dropout": 1.0}, "model.dropout=1.0 must be below 1"),
        ({"model__dropout": -0.1}, "model.dropout=-0.1 must be at least 0"),
        ({"sampler__top_p": 0.0}, "sampler.top_p=0.0 must be greater than 0"),
        ({"sampler__top_p": 1.1}, "sampler.top_p=1.1 must be at most 1"),
        ({"sampler__temperature": -1}, "sampler.temperature=-1.0 must be at least 0"),
        ({"optim__learning_rate": 0}, "optim.learning_rate=0.0 must be greater than 0"),
        ({"optim__ema_decay": 1}, "optim.ema_decay=1.0 must be below 1"),
        ({"model__logit_cap": -30}, "model.logit_cap=-30.0 must be at least 0"),
        ({"train__batch_size": 0}, "train.batch_size=0 must be at least 1"),
        ({"train__keep_latest": 0}, "train.keep_latest=0 must be at least 1"),
        ({"model__dtype": "float16"}, "float16 is not known; use float32 or bfloat16"),
        ({"space": "dense"}, "space=dense is not known; use auto or onehot or projected"),
        ({"optim__accumulation_steps": 3}, "=512 is not a multiple of optim.accumulation_steps=3"),
        ({"optim__schedule": "cosine", "train__steps": 9}, "train.steps=9 is not above"),
        ({"mesh__fsdp": 0}, "mesh.fsdp=0 must be a number of devices"),
        ({"mesh__fsdp": -1}, "mesh.data and mesh.fsdp are both -1"),
        ({"mesh__tensor": -2}, "mesh.tensor=-2 must be at least -1"),
        ({"data__name": "name"}, "unknown data set 'name'; did you mean names?"),
        ({"tokenizer__name": ""}, "tokenizer.name: no tokenizer is named"),
        ({"loss__name": "fm"}, "unknown loss 'fm'"),
        ({"loss__options": {"scales": 1}}, "loss 'flow_matching' has no option 'scales'"),
        ({"evals": ("entropi",)}, "unknown evaluator 'entropi'; did you mean entropy?"),
        ({"teacher": "runs/a"}, "teacher='runs/a' is set but loss 'flow_matching' uses none"),
        ({"model__two_times": True}, "a network of one time but model.two_times=True"),
        ({"loss__name": "psd", "model__two_times": True}, "loss 'psd' needs a teacher"),
        ({"loss__name": "psd", "teacher": "t"}, "two times but model.two_times=False"),
    ],
)
def test_clashes_are_explained(overrides, expected):
    assert expected in sentence(config_lib.validate, make(**overrides), TABLES)


def test_all_problems_are_told_at_once():
    lines = sentence(
        config_lib.validate, make(model__dropout=2, sampler__top_p=2, loss__name="x"), TABLES
    ).splitlines()
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("mesh", "devices", "shape"),
    [
        ((-1, 1, 1), 8, (8, 1, 1)),
        ((-1, 2, 2), 8, (2, 2, 2)),
        ((2, -1, 1), 8, (2, 4, 1)),
        ((1, 1, -1), 1, (1, 1, 1)),
        ((2, 2, 2), 8, (2, 2, 2)),
    ],
)
def test_mesh_shape(mesh, devices, shape):
    assert config_lib.mesh_shape(config_lib.Mesh(*mesh), devices) == shape


def test_devices_are_checked():
    def check(devices, processes=1, **overrides):
        return config_lib.validate_devices(make(**overrides), devices, processes)

    assert check(8, train__batch_size=8) == (8, 1, 1)
    text = sentence(check, 8, train__batch_size=12)
    assert "train.batch_size=12 must be a multiple of 8" in text and "try 8 or 16" in text
    assert "try 8" in sentence(check, 8, train__batch_size=4)
    assert check(8, mesh__tensor=8, train__batch_size=1) == (1, 1, 8)
    assert "on 2 processes" in sentence(check, 8, 2, mesh__tensor=8, train__batch_size=1)
    text = sentence(check, 4, train__batch_size=8, optim__accumulation_steps=4)
    assert "multiple of 16" in text and "optim.accumulation_steps=4" in text
    assert "multiple of 3 devices but there are 8" in sentence(check, 8, mesh__fsdp=3)
    assert "needs 4 devices but there are 8" in sentence(check, 8, mesh__data=4)


def test_vocabulary_must_be_the_tokenizers():
    config_lib.validate_vocabulary(5, 5, "the checkpoint")
    text = sentence(config_lib.validate_vocabulary, 5, 6, "the checkpoint")
    assert "the checkpoint has a vocabulary of 5 entries but the tokenizer has 6" in text


# The command line


@pytest.fixture
def tool():
    """Runs a small tool in this process: tool("--config=...") -> exit code."""
    known, defined = set(flags.FLAGS), dict(command_line._DEFINED)
    holder = config_lib.config_flag()

    def main(argv):
        tool.config, tool.words = holder.value, argv[1:]

    def run(*words):
        flags.FLAGS["config"].unparse()
        with pytest.raises(SystemExit) as caught:
            config_lib.run_main(main, ["tool", *words])
        return caught.value.code

    tool = run
    yield run
    command_line._DEFINED.clear()
    command_line._DEFINED.update(defined)
    for name in set(flags.FLAGS) - known:
        delattr(flags.FLAGS, name)
    flags.FLAGS.mark_as_parsed()


QUICKSTART = "--config=configs/quickstart.py"


def test_overrides_on_the_command_line(tool):
    code = tool(QUICKSTART, "--config.optim.beta1=0.5", "--config.seed", "4", "a", "b")
    assert code == 0 and tool.words == ["a", "b"]
    assert (tool.config.optim.beta1, tool.config.seed) == (0.5, 4)
    assert tool("--config.seed=3", QUICKSTART) == 0 and tool.config.seed == 3
    assert tool(QUICKSTART) == 0 and tool.config.seed == 1, "overrides must not outlive a run"
    assert tool(QUICKSTART, "--config.data.options.path=a=b") == 0
    assert tool.config.data.options["path"] == "a=b"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "--config=FILE is missing"),
        (["--config.seed=3"], "--config.seed changes a config, but no --config=FILE is given"),
        ([QUICKSTART, "--config.seed"], "--config.seed has no value"),
        ([QUICKSTART, "--confg=3"], "unknown flag --confg; did you mean config?"),
        (["--config=nowhere.py"], "config file nowhere.py does not exist"),
        (["--config"], "Missing value for flag --config"),
        ([QUICKSTART, "--config.seed=x"], "seed must be an integer, not 'x'"),
    ],
)
def test_mistakes_on_the_command_line(tool, capsys, words, expected):
    assert tool(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and expected in error and "Traceback" not in error


def test_several_problems_are_lined_up(tool, capsys, monkeypatch):
    def main(argv):
        raise UserError("one\ntwo")

    with pytest.raises(SystemExit, match="2"):
        config_lib.run_main(main, ["tool"])
    assert capsys.readouterr().err == "error: one\n       two\n"


def test_exit_codes(capsys):
    def code_of(main):
        with pytest.raises(SystemExit) as caught:
            config_lib.run_main(main, ["tool"])
        return caught.value.code

    def interrupted(argv):
        raise KeyboardInterrupt

    assert code_of(lambda argv: 3) == 3 and code_of(lambda argv: None) == 0
    assert code_of(interrupted) == 130 and "interrupted" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):  # our own bugs keep their traceback
        config_lib.run_main(lambda argv: 1 / 0, ["tool"])


def test_help_lists_every_key(tool, capsys):
    assert tool("--help") == 0
    text = capsys.readouterr().out
    missing = [key for key, _ in settings.knobs() if f"--config.{key}=" not in text]
    assert not missing and "every mistake gets one sentence" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_real_process_shows_one_sentence(tmp_path):
    source = """
        from flm_jax import config
        CONFIG = config.config_flag()
        if __name__ == "__main__":
            config.run_main(lambda argv: print(CONFIG.value.seed))
    """
    (tmp_path / "tool.py").write_text(textwrap.dedent(source))

    def run(*words):
        command = [sys.executable, str(tmp_path / "tool.py"), QUICKSTART, *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)

    good, bad = run("--config.seed=5"), run("--config.sed=5")
    assert (good.returncode, good.stdout, good.stderr) == (0, "5\n", "")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "error: unknown config key 'sed'; did you mean seed?\n"
