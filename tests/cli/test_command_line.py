"""The command line: options, exit codes, help, and one sentence for every mistake."""

import dataclasses
import importlib.util
import re
import shlex
import subprocess
import sys
import textwrap

import pytest
from commands import ROOT, call, flm

import flm_jax
from flm_jax import cli
from flm_jax.cli import exits, help
from flm_jax.cli.options import ConfigFile, Configured, options_of, parse, words_of
from flm_jax.config import settings
from flm_jax.errors import UserError
from flm_jax.knobs import knob
from flm_jax.options import Drawing

QUICKSTART = "--config=configs/quickstart.py"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Configured, Drawing):
    place: str = knob("", "a folder", word=True)
    verify: bool = knob(False, "look twice")
    found: bool | None = knob(None, "found out")
    scale: float = knob(1.0, "how large", above=0)
    names: tuple[str, ...] = knob(("a", "b"), "some", choices=("a", "b", "c"))


def options(*words: str) -> Options:
    return parse(Options, ["--checkpoint=x", *words])


def test_values_are_read_as_their_types_say():
    found = options("--steps", "1,8,32", "here", "--verify", "-nofound", "--scale=2", "--seed=1e3")
    assert (found.steps, found.place, found.verify, found.found) == (
        (1, 8, 32),
        "here",
        True,
        False,
    )
    assert (found.scale, found.seed, found.batch_size, found.names) == (2.0, 1000, None, ("a", "b"))
    assert type(found.scale) is float and type(found.seed) is int
    assert options("--noverify", "--found=yes", "--names=").names == ()
    assert options("--temperature=0.5", "--patience=2").knobs == {"temperature": 0.5, "patience": 2}
    assert options("--", "--odd").place == "--odd"
    assert options("--seed=1", "--seed=2").seed == 2
    assert options("--teacher=a=b").teacher == "a=b"


def test_overrides_of_the_config():
    found = options("--config.seed", "4", QUICKSTART, "--config.optim.beta1=0.5", "here").config
    assert (found.value.optim.beta1, found.value.seed) == (0.5, 4)
    assert options(QUICKSTART).config.value.seed == 1
    found = options("--config", "configs/quickstart.py", "--config.data.options.path=a=b").config
    assert found.value.data.options["path"] == "a=b"


def test_words_of_options_make_the_same_options():
    words = ["here", QUICKSTART, "--config.seed=3", "--checkpoint=my run", "--steps=1,2"]
    words += ["--patience=2", "--temperature=0.0", "--verify=True", "--names=c"]
    found = parse(Options, words)
    assert sorted(words_of(found)) == sorted(words)
    again = parse(Options, words_of(found))
    assert again == found and again.config.overrides == {"seed": "3"} and again.knobs == found.knobs
    assert words_of(options()) == ["--checkpoint=x"]


def test_words_without_a_name_may_be_many():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Many:
        runs: tuple[str, ...] = knob((), "some", word=True)
        rates: tuple[float, ...] = knob((), "some numbers", above=0)

    found = parse(Many, ["runs/a", "--rates=1e-3,2", "runs/b,c"])
    assert (found.runs, found.rates) == (("runs/a", "runs/b,c"), (1e-3, 2.0))
    assert words_of(found) == ["runs/a", "runs/b,c", "--rates=0.001,2.0"]
    assert parse(Many, []).runs == ()
    with pytest.raises(UserError, match="--rates=1,x is not a list of numbers such as 1e-3,3e-3"):
        parse(Many, ["--rates=1,x"])
    page = help.page("many", cli.Command("Some.", Many, lambda options: None))
    assert page.startswith("usage: flm many [RUNS ...] [--option=value ...]")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--seed"], "--seed has no value; write --seed=VALUE"),
        (["--seed", "--verify"], "--seed has no value; write --seed=VALUE"),
        (["--config.seed"], "--config.seed has no value; write --config.seed=VALUE"),
        (["--seed=x"], "--seed=x is not a whole number"),
        (["--seed=1.5"], "--seed=1.5 is not a whole number"),
        (["--scale=nan"], "--scale=nan is not a finite number"),
        (["--scale=0"], "--scale=0.0 must be greater than 0"),
        (["--verify=perhaps"], "--verify=perhaps is not true or false"),
        (["--steps=1,,8"], "--steps=1,,8 is not a list of whole numbers such as 1,8,32"),
        (["--steps="], "--steps= is not a list of whole numbers such as 1,8,32"),
        (["--steps=1,0"], "0 in --steps must be at least 1"),
        (["--names=a,d"], "d in --names is not known; use a or b or c"),
        (["a", "b"], "unexpected argument 'b'; options are written --name=value"),
        (["--checkpoint="], "--checkpoint=PATH is missing; give a run's --workdir or a .ckpt file"),
        # What it is called here.
        (["--batch-size=3"], "unknown option --batch-size; did you mean --batch_size?"),
        (["--stpes=3"], "unknown option --stpes; did you mean --steps?"),
        (["--confg=3"], "unknown option --confg; did you mean --config?"),
        (["-n", "3"], "unknown option --n; did you mean --num_samples?"),
        (["--lr=3"], "unknown option --lr; did you mean --config.optim.learning_rate?"),
        (["--learning_rate=3"], "--learning_rate; did you mean --config.optim.learning_rate?"),
        (["--learning-rte=3"], "--learning-rte; did you mean --config.optim.learning_rate?"),
        (["--num_workers=3"], "--num_workers; did you mean --config.data.num_workers?"),
        (["--epochs=3"], "--epochs; training is counted in steps: --config.train.steps=N"),
        (["--device=cuda"], "JAX_PLATFORMS=cpu before the command chooses"),
        (["--shyness"], "unknown option --shyness; --help lists the options"),
    ],
)
def test_mistakes_get_a_sentence(words, sentence):
    with pytest.raises(UserError) as caught:
        options(*words)
    assert str(caught.value).endswith(sentence) and "\n" not in str(caught.value)


def test_names_that_several_sections_have_are_all_named():
    """Of a command without the option itself; one without a config names no key of one."""
    for kind, expected in (
        (Configured, "did you mean --config.train.batch_size or --config.sampler.batch_size?"),
        (Drawing, "did you mean --batch_size?"),
    ):
        with pytest.raises(UserError, match=re.escape(expected)):
            parse(kind, ["--checkpoint=x", "--bs=3"] if kind is Drawing else ["--bs=3"])
    with pytest.raises(UserError, match="unknown option --lr; --help lists the options"):
        parse(Drawing, ["--lr=3"])


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        (ConfigFile(), "--config=FILE is missing; try --config=configs/quickstart.py"),
        (ConfigFile(None, {"seed": "3"}), "--config.seed changes a config, but no --config=FILE"),
        (ConfigFile("nowhere.py"), "config file nowhere.py does not exist"),
        (ConfigFile("configs/quickstart.py", {"seed": "x"}), "seed must be an integer, not 'x'"),
    ],
)
def test_configs_that_are_none(file, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        assert file.value


def test_several_problems_are_lined_up(capsys):
    def work():
        raise UserError("one\ntwo")

    with pytest.raises(SystemExit, match="2"):
        exits.exit_with(work)
    assert capsys.readouterr().err == "error: one\n       two\n"


def test_exit_codes(capsys):
    def code_of(work):
        with pytest.raises(SystemExit) as caught:
            exits.exit_with(work)
        return caught.value.code

    def interrupted():
        raise KeyboardInterrupt

    assert code_of(lambda: 3) == 3 and code_of(lambda: None) == 0
    assert code_of(interrupted) == 130 and "interrupted" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):  # our own bugs keep their traceback
        exits.exit_with(lambda: 1 / 0)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_explained(name, capsys):
    """What it does, examples that its options accept, its options and every config key."""
    assert call(*name.split(), "--help") == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    command = cli.load(name)
    known = options_of(command.options)
    for option in known.values():
        word = option.name.upper()
        heads = (word, f"[{word} ...]", f"--{option.name}=...", f"--[no]{option.name} ")
        assert any(f"\n  {head}" in text for head in heads), option.name
    keys = [key for key, _ in settings.knobs()] if "config" in known else []
    assert [key for key in keys if f"--config.{key}=" not in text] == []
    examples = re.findall(rf"^ +flm {name} ((?:.*\\\n)*.*)", text, re.MULTILINE)
    assert examples
    for example in examples:
        words = example.replace("\\\n", " ").partition(" >")[0]
        parse(command.options, shlex.split(words, comments=True))


def test_valid_names_are_listed(capsys):
    call("generate", "--help")
    assert "euler | autoregressive |" in " ".join(capsys.readouterr().out.split())
    call("help", "train")
    text = " ".join(capsys.readouterr().out.split())
    for names in ("flow_matching | psd", "gpt2 | bert-base-uncased", "text_statistics | truth"):
        assert names in text


def test_the_overview_and_words_that_are_no_command(capsys):
    overviews = []
    for words in ([], ["help"], ["--help"], ["-h"]):
        assert call(*words) == 0
        overviews.append(capsys.readouterr().out)
    assert len(set(overviews)) == 1
    for name in cli.COMMANDS:
        assert re.search(rf"^  {name}  +[A-Z].*\n +flm {name} ", overviews[0], re.MULTILINE), name
    assert max(map(len, overviews[0].splitlines())) <= 100
    assert call("--version") == 0 and capsys.readouterr().out == f"flm_jax {flm_jax.__version__}\n"
    for words, sentence in (
        (["genrate"], "there is no command 'genrate'; did you mean generate?"),
        (["help", "trian"], "there is no command 'trian'; did you mean train?"),
        (["xyz"], "there is no command 'xyz'; flm help lists them"),
        ([QUICKSTART], f"{QUICKSTART} comes after a command, as in: flm train {QUICKSTART} ..."),
    ):
        assert call(*words) == 2
        assert capsys.readouterr().err.startswith(f"error: {sentence}")


def test_the_example_of_an_overview_is_whole():
    about = "Does.\n\n    flm do a \\\n        --b=1      # remark\n    flm do c\n"
    assert help.overview({"do": about}).splitlines()[3].strip() == "flm do a --b=1"


def test_the_overview_and_a_mistake_load_nothing_heavy():
    """They answer within half a second: no module of JAX, of numpy or of a room that computes."""
    heavy = "jax", "numpy", "scipy", "flax", "orbax", "grain", "optax", "tensorboardX", "tokenizers"
    program = f"""
        import sys
        from flm_jax import cli
        for words in ([], ["generate", "--chekpoint=x"], ["train", "--workdir=none"]):
            try:
                cli.main(words)
            except SystemExit:
                pass
        from flm_jax.cli import parity
        parity._prepare()  # of the XLA that is not there yet
        print([name for name in {heavy} if name in sys.modules], file=sys.stderr)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stderr.splitlines()[-1] == "[]", done.stderr
    assert done.stderr.count("error: ") == 2


def test_a_real_process_shows_one_sentence():
    good, bad = flm("--version"), flm("inspect", QUICKSTART, "--config.sed=5")
    assert (good.returncode, good.stderr) == (0, "") and good.stdout.startswith("flm_jax ")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "error: unknown config key 'sed'; did you mean seed?\n"
    main = subprocess.run(
        [sys.executable, "-m", "flm_jax.main", "--workdr=x"], capture_output=True, text=True
    )
    expected = "error: unknown option --workdr; did you mean --workdir?\n"
    assert (main.returncode, main.stderr) == (2, expected)


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["ge"], "generate"),
        (["generate", "--st"], "--step= --steps="),
        (["train", "--steps=1", "--config.optim.l"], "--config.optim.learning_rate="),
        (["benchmark", "data", "--se"], "--seconds="),
        (["benchmark", "train", "--js"], "--json"),
    ],
)
def test_the_shell_completes(words, completed, capsys):
    call("completion", "bash")
    script = capsys.readouterr().out
    script += f"COMP_WORDS=(flm {shlex.join(words)}) COMP_CWORD={len(words)}; _flm; "
    script += 'echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (completed, "")


def test_the_package_tells_its_public_names():
    assert set(dir(flm_jax)) >= {"load", "FlowModel", "Samples", "UserError", "__version__"}
    with pytest.raises(AttributeError, match="has no attribute 'sample'"):
        assert flm_jax.sample


def test_classes_of_the_current_folder_are_found_as_by_python_m(tmp_path, monkeypatch):
    """The installed program does not have that folder on its path; `python -m` has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    monkeypatch.setattr(sys, "argv", ["flm", "--version"])
    (tmp_path / "of_a_user.py").write_text("class Mine: pass")
    with pytest.raises(SystemExit):
        cli.main()
    assert importlib.util.find_spec("of_a_user") is not None
    before = list(sys.path)
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert sys.path == before
