"""--config=FILE:STAGE: what is found, from where, and what a mistake in it gets."""

import pathlib
import sys

import pytest
from config_changes import changed, sentence

from flm_jax import config as config_lib
from flm_jax.configs import common

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIGS = sorted(path for path in ROOT.glob("configs/*.py") if path.stem != "__init__")
MINE = "from configs import common\ndef get_config(stage='pretrain'):\n    return "


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A user's folder, current and first on the path; the repository is not on the path."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    others = [p for p in sys.path if p and pathlib.Path(p) != ROOT]
    monkeypatch.setattr(sys, "path", [str(folder), *others])
    forget_configs()
    yield folder
    forget_configs()


def forget_configs():
    for name in imported_configs():
        del sys.modules[name]


def imported_configs():
    return [name for name in sys.modules if name.split(".")[0] == "configs"]


def test_our_configs_are_found_from_any_folder(elsewhere):
    assert config_lib.load("quickstart").data.name == "short_stories"
    assert config_lib.load("configs/quickstart.py:distill", {"teacher": "a"}).stage == "distill"
    assert config_lib.load("quickstart:distill") == config_lib.load(
        str(ROOT / "configs/quickstart.py:distill")
    )
    (elsewhere / "quickstart").mkdir()  # the workdir of another run, say
    assert config_lib.load("quickstart").data.name == "short_stories"
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs/quickstart.py").write_text("def get_config():\n    return {'seed': 9}")
    for name in ("quickstart", "configs/quickstart.py"):
        assert config_lib.load(name).seed == 9
    assert config_lib.load("python_prose:characters").tokenizer.name == "characters"


def test_a_package_named_configs_of_the_users_hides_nothing(elsewhere):
    """Without one, with a plain folder of that name, and with a package."""
    (elsewhere / "mine.py").write_text(MINE + "common.get_config(stage)")
    assert config_lib.load("mine.py:duo").stage == "duo"
    assert not imported_configs()
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs/own.py").write_text("seed = 7")
    text = "from configs import own\n" + MINE + "{'seed': own.seed, 'stage': common.STAGES[1]}"
    (elsewhere / "mine.py").write_text(text)
    assert config_lib.load("mine.py") == changed(seed=7, stage="distill")
    assert not imported_configs()
    (elsewhere / "configs/__init__.py").touch()
    told = sentence(config_lib.load, "mine.py")
    assert told.startswith("config file mine.py, line 2: ImportError: cannot import name 'common'")
    assert told.endswith("(from flm_jax.configs import common)")
    text = text.replace("configs import common", "flm_jax.configs import common")
    (elsewhere / "mine.py").write_text(text)
    assert config_lib.load("mine.py") == changed(seed=7, stage="distill")
    assert config_lib.load("text_files:ar").stage == "ar"


def test_paths_with_colons(elsewhere):
    folder = elsewhere / "my:folder"
    folder.mkdir()
    text = "def get_config(stage='none'):\n    return {'stage': stage}"
    for name in ("c.py", "d:e.py"):
        (folder / name).write_text(text)
        assert config_lib.load(f"my:folder/{name}").stage == "none"
        assert config_lib.load(f"my:folder/{name}:stage").stage == "stage"
        assert config_lib.load(f"{folder}/{name}:a:b").stage == "a:b"
    assert "file my:folder/x.py does not" in sentence(config_lib.load, "my:folder/x.py")
    assert "file my:folder/x.py does not" in sentence(config_lib.load, "my:folder/x.py:stage")
    assert "file my:folder is a folder" in sentence(config_lib.load, "my:folder")


def test_the_stored_config_of_a_run(elsewhere):
    workdir = elsewhere / "runs/q"
    workdir.mkdir(parents=True)
    config = config_lib.load("quickstart:distill", {"teacher": "runs/t", "evals": "entropy"})
    (workdir / "config.json").write_text(config_lib.to_json(config))
    assert config_lib.load("runs/q/config.json") == config
    again = config_lib.load("runs/q/config.json", {"seed": "3", "data.options.x": "1"})
    assert (again.seed, again.data.options["x"], again.teacher) == (3, 1, "runs/t")
    for given in ("runs/q", "runs/q:distill"):
        told = sentence(config_lib.load, given)
        assert told.endswith("runs/q is the workdir of a run; its config is runs/q/config.json")
    told = sentence(config_lib.load, "runs/q/config.json:ar")
    assert told.endswith("is the config of one run and has no stages; omit ':ar'")
    for text, wrong in (("{", "not JSON"), ('{"model_type": "gpt2"}', "unknown config key")):
        (workdir / "config.json").write_text(text)
        told = sentence(config_lib.load, "runs/q/config.json")
        assert told.startswith("runs/q/config.json is not the stored config of a run: ")
        assert wrong in told


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = (", "mine.py, line 1: SyntaxError"),
        ("\n\nimport nothing_of_the_kind", "mine.py, line 3: ModuleNotFoundError"),
        ("def get_config():\n    return 1 / 0", "mine.py, line 2: ZeroDivisionError"),
        (MINE + "common.small(3)", "mine.py, line 3: AttributeError"),
        (MINE + "common.pieces()", "mine.py, line 3: TypeError"),
        ("config = 3", "must define get_config()"),
        ("def get_config():\n    return 3", "must return a ConfigDict"),
        ("def get_config():\n    pass", "must return a ConfigDict"),
    ],
)
def test_broken_config_files(config_file, text, expected):
    assert expected in sentence(config_lib.load, config_file(text))


def test_missing_config_files(config_file, elsewhere):
    for name in ("quickstrat.py", "quickstrat", "configs/quickstrat.py:distill", "quickstart.py"):
        assert "did you mean configs/quickstart.py?" in sentence(config_lib.load, name)
    for name in ("", ":distill", "zzz.py"):
        assert "; there are: configs/bench_cpu.py, configs/compare.py, configs/l" in sentence(
            config_lib.load, name
        )
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs/rhymes.py").touch()
    assert "did you mean configs/rhymes.py?" in sentence(config_lib.load, "rhyme")
    assert "did you mean configs/quickstart.py?" in sentence(config_lib.load, "quickstat")
    assert f"{elsewhere} is a folder" in sentence(config_lib.load, str(elsewhere))
    path = config_file("def get_config():\n    return {}")
    assert "takes no argument, but got 'x'" in sentence(config_lib.load, path + ":x")


@pytest.mark.parametrize("name", [path.stem for path in CONFIGS])
def test_a_stage_that_there_is_not_gets_those_that_there_are(name):
    told = sentence(config_lib.load, f"{name}:nonsense")
    if name == "compare":  # its presets are texts
        assert told == (
            "configs/compare.py has no preset 'nonsense'; write one of text, stories, city_pairs, "
            "addition, brackets, grammar, addition3, brackets32, large_grammar after the colon"
        )
        return
    assert told.startswith("this config has no stage 'nonsense'; write ")
    if name == "proof":
        assert "methods flm, fmlm" in told and "sizes default, large" in told
    else:
        assert ", ".join(common.STAGES) in told
    words = {"sudoku": "4x4 or grids or fast or easy or medium or hard"}
    words |= dict.fromkeys(("python_prose", "text_files"), "characters or small or fast")
    words |= dict.fromkeys(("text8", "wikitext", "tinystories"), "small or fast")
    words |= dict.fromkeys(("lm1b", "owt", "ptb", "stories", "tinygsm"), "fast")
    if name != "proof":
        after = f", and after a comma {words[name]}" if name in words else " after the colon"
        assert told.endswith(after)
