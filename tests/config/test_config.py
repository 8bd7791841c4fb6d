"""Config: every mistake gets one sentence; what is right arrives typed, frozen and unchanged."""

import dataclasses
import pathlib
import re
import typing

import pytest
from config_changes import Distilling, changed, sentence

from flm_jax import config as config_lib
from flm_jax import data, losses, samplers, tokenizers
from flm_jax.config import Config, settings
from flm_jax.configs import common
from flm_jax.errors import UserError

TABLES = {
    "loss": losses.LOSSES,
    "sampler": samplers.SAMPLERS,
    "data": data.DATASETS,
    "tokenizer": tokenizers.TOKENIZERS,
}
ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIGS = sorted(path for path in ROOT.glob("configs/*.py") if path.stem != "__init__")


@dataclasses.dataclass(frozen=True)
class Plain:
    scale: float = 1.0
    repeats: int = 1
    kinds: tuple[str, ...] = ()
    mode: typing.Literal["fast", "slow"] = "fast"
    limit: int | None = None


# The files of ours; how files are found and run is in test_config_files.py


def test_common_starts_from_the_defaults_and_takes_what_users_write(config_file):
    assert config_lib.load("configs/common.py") == Config()
    model = dataclasses.asdict(Config().model)
    assert model | common.PRESETS["small"] == model
    changes = """
        from flm_jax.configs import common

        def get_config(stage="pretrain"):
            config = common.get_config(stage)
            config.optim.learning_rate = 1
            config.sampler.steps = [1, 8]
            config.data.options.path = "a.txt"
            config.data.options.update(parts=[1, 2])
            config.model.update(common.PRESETS["tiny"], dropout=0)
            config.tokenizer = common.pieces(64)
            config.evals = ["truth"]
            config.eval_options.truth = dict(rows=3)
            config.teacher = "runs/a"
            return config
        """
    assert config_lib.load(config_file(changes)) == changed(
        optim__learning_rate=1.0,
        sampler__steps=(1, 8),
        data__options={"path": "a.txt", "parts": [1, 2]},
        model={**model, **common.PRESETS["tiny"], "dropout": 0.0},
        tokenizer={"name": "sentencepiece", "options": {"vocab_size": 64}},
        evals=("truth",),
        eval_options={"truth": {"rows": 3}},
        teacher="runs/a",
    )
    changes = changes.replace("config.optim.learning_rate", "config.optim.learnin_rate")
    assert "did you mean optim.learning_rate?" in sentence(config_lib.load, config_file(changes))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_is_valid(path):
    resolved = config_lib.load(str(path))
    if path.stem != "common":
        config_lib.validate(resolved, TABLES)
    assert config_lib.validate_devices(resolved, 8) == (8, 1, 1)
    named = resolved.tokenizer.name or resolved.data.name == "prepared"  # rows bring theirs
    assert path.stem == "common" or (resolved.data.name and named)


def test_own_text_is_a_matter_of_one_override(tmp_path):
    (tmp_path / "7.txt").write_text("one\ntwo\nthree\n" * 20)
    overrides = {"data.options.path": str(tmp_path / "7.txt")}
    section = config_lib.load("configs/text_files.py", overrides).data
    corpus = config_lib.build(data.DATASETS, section.name, section.options, "data set")
    assert "two" in corpus.source("train")[:]
    missing = config_lib.load("configs/text_files.py").data
    args = (data.DATASETS, missing.name, missing.options, "data set")
    assert "needs options.path" in sentence(config_lib.build, *args)


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
        ("optim.lr", "1", "section 'optim' has: name, learning_rate"),
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
    assert hash(changed()) == hash(changed()) and changed() == changed()
    assert changed(seed=2) != changed() and changed(data__options={"a": 1}) != changed()
    with pytest.raises(dataclasses.FrozenInstanceError):
        changed().optim.beta1 = 0.5


def test_json_round_trip():
    config = changed(sampler__steps=(3, 1), data__options={"path": ["a", "b"], "x": 0.1})
    assert config_lib.from_json(config_lib.to_json(config)) == config
    assert config_lib.from_json(config_lib.to_dict(config)) == config
    assert "not JSON" in sentence(config_lib.from_json, "{")
    text = sentence(config_lib.to_json, changed(data__options={"key": re.compile("a")}))
    assert "options may hold only numbers, text, lists and dicts: Object of type Pattern" in text


def test_differences_name_what_makes_another_experiment():
    old = changed(data__options={"path": ("a",), "gone": 1})
    new = changed(optim__beta1=0.5, data__options={"path": ["a"], "fresh": 2}, train__steps=7)
    assert config_lib.differences(old, new) == [
        "data.options.fresh: (absent) -> 2",
        "data.options.gone: 1 -> (absent)",
        "optim.beta1: 0.9 -> 0.5",
    ]
    assert "train.steps: 1000000 -> 7" in config_lib.differences(old, new, everything=True)
    assert not config_lib.differences(old, old)
    # How files are read may be said later: what comes out of them is compared by fingerprints.
    said = changed(data__options={"path": ("a",), "gone": 1, "format": "text"})
    assert not config_lib.differences(old, said)
    assert config_lib.differences(old, said, everything=True)


def test_changeable_keys_exist_and_spare_the_numbers():
    keys = [key for key, _ in settings.knobs()]
    for free in settings.CHANGEABLE:
        in_options = free.startswith("data.options.")
        assert in_options or any(k == free or k.startswith(free + ".") for k in keys), free
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


@pytest.mark.parametrize("value", [True, "True", "true", False, "False"])
def test_truth_values_of_remat_keep_their_meaning(value):
    """Stored configs and command lines of earlier versions have them."""
    tree = {"data": {"name": "d"}, "tokenizer": {"name": "t"}, "model": {"remat": value}}
    wanted = "full" if str(value).lower() == "true" else "none"
    assert config_lib.resolve(tree).model.remat == wanted
    stored = dataclasses.asdict(Config()) | {"model": {"remat": value}}
    assert config_lib.from_json(stored).model.remat == wanted


def test_remat_has_no_other_values():
    tree = {"data": {"name": "d"}, "tokenizer": {"name": "t"}, "model": {"remat": "some"}}
    with pytest.raises(UserError, match="model.remat=some is not known; use auto or full or"):
        config_lib.validate(config_lib.resolve(tree), {})
