"""The command line: overrides, exit codes, --help, and one sentence for every mistake."""

import pathlib
import subprocess
import sys
import textwrap

import pytest
from absl import flags

from flm_jax.cli import flags as command_line
from flm_jax.config import settings
from flm_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def tool():
    """Runs a small tool in this process: tool("--config=...") -> exit code."""
    known, defined = set(flags.FLAGS), dict(command_line._DEFINED)
    holder = command_line.config_flag()

    def main(argv):
        tool.config, tool.words = holder.value, argv[1:]

    def run(*words):
        flags.FLAGS["config"].unparse()
        with pytest.raises(SystemExit) as caught:
            command_line.run_main(main, ["tool", *words])
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
        command_line.run_main(main, ["tool"])
    assert capsys.readouterr().err == "error: one\n       two\n"


def test_exit_codes(capsys):
    def code_of(main):
        with pytest.raises(SystemExit) as caught:
            command_line.run_main(main, ["tool"])
        return caught.value.code

    def interrupted(argv):
        raise KeyboardInterrupt

    assert code_of(lambda argv: 3) == 3 and code_of(lambda argv: None) == 0
    assert code_of(interrupted) == 130 and "interrupted" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):  # our own bugs keep their traceback
        command_line.run_main(lambda argv: 1 / 0, ["tool"])


def test_help_lists_every_key(tool, capsys):
    assert tool("--help") == 0
    text = capsys.readouterr().out
    missing = [key for key, _ in settings.knobs() if f"--config.{key}=" not in text]
    assert not missing and "one sentence for every mistake" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_real_process_shows_one_sentence(tmp_path):
    source = """
        from flm_jax.cli import flags as command_line
        CONFIG = command_line.config_flag()
        if __name__ == "__main__":
            command_line.run_main(lambda argv: print(CONFIG.value.seed))
    """
    (tmp_path / "tool.py").write_text(textwrap.dedent(source))

    def run(*words):
        command = [sys.executable, str(tmp_path / "tool.py"), QUICKSTART, *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)

    good, bad = run("--config.seed=5"), run("--config.sed=5")
    assert (good.returncode, good.stdout, good.stderr) == (0, "5\n", "")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "error: unknown config key 'sed'; did you mean seed?\n"


def test_all_modules_can_be_imported_together():
    """Flags of one name in two modules would end whoever imports both, such as this suite."""
    script = """
        import importlib, pkgutil, flm_jax
        names = [m.name for m in pkgutil.walk_packages(flm_jax.__path__, "flm_jax.")]
        for name in names:
            if not name.endswith("__main__"):
                importlib.import_module(name)
        print(len(names))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100
