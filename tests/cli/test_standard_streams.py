"""Standard output and error that do not take what is printed, and what a command makes of it."""

import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

from flm_jax.cli import streams
from flm_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
FULL = pathlib.Path("/dev/full")


@pytest.fixture
def tool(tmp_path):
    """Runs a small tool in a shell: tool(lines of its main, redirection) -> (code, out, err)."""

    def run(body: str, redirection: str = "", needs_reader: bool = True, **environment):
        source = f"""
            import pathlib, sys, time
            from flm_jax.cli import exits
            from flm_jax.errors import UserError

            def main():
                {body}
                pathlib.Path({str(tmp_path / "done")!r}).touch()

            if __name__ == "__main__":
                exits.exit_with(main, needs_reader={needs_reader})
        """
        (tmp_path / "tool.py").write_text(textwrap.dedent(source), encoding="utf-8")
        (tmp_path / "done").unlink(missing_ok=True)
        command = f"set -o pipefail; {sys.executable} {tmp_path}/tool.py {redirection}"
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, cwd=ROOT, timeout=60,
            env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"} | environment,
        )  # fmt: skip
        done.finished = (tmp_path / "done").exists()
        return done

    return run


PLAIN = dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")


@pytest.mark.parametrize(
    ("environment", "printed"),
    [
        (PLAIN, b"caf? ?\n"),
        (dict(PYTHONIOENCODING="ascii"), b"caf? ?\n"),
        (dict(PYTHONIOENCODING="latin-1"), b"caf\xe9 ?\n"),
        (dict(PYTHONIOENCODING="utf-8"), "café ?\n".encode()),  # half a pair of surrogates
    ],
    ids=["C", "ascii", "latin-1", "surrogate"],
)
def test_text_that_the_encoding_cannot_say(tool, environment, printed):
    text = r"'caf\u00e9 \ud800'"
    done = tool(f"print({text}); print({text}, file=sys.stderr)", **environment)
    assert (done.returncode, done.stdout, done.finished) == (0, printed, True)
    assert done.stderr.startswith(b"caf") and b"Traceback" not in done.stderr


MANY = "[print('line', i, flush=True) or time.sleep(0.02) for i in range(20)]"


def test_a_reader_that_leaves_ends_a_command_that_prints(tool):
    done = tool(MANY, "| head -1")
    assert (done.returncode, done.stdout, done.stderr) == (141, b"line 0\n", b"")
    assert not done.finished
    done = tool(MANY, "| head -1", PYTHONUNBUFFERED="1")
    assert (done.returncode, done.stdout, done.finished) == (141, b"line 0\n", False)
    done = tool(MANY.replace(", flush=True", ""), "| true")  # it fails at the last flush
    assert (done.returncode, done.stderr, done.finished) == (141, b"", True)


def test_a_reader_that_leaves_ends_no_work(tool):
    done = tool(MANY, "| head -1", needs_reader=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"line 0\n", b"")
    assert done.finished
    progress = MANY.replace("flush=True", "file=sys.stderr")
    done = tool(progress, "2>&1 >/dev/null | head -1")  # nor does one of the progress
    assert (done.returncode, done.stdout, done.finished) == (0, b"line 0\n", True)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize("needs_reader", [True, False])
def test_closed_streams(tool, tmp_path, closed, needs_reader):
    """The next opened file must not get their numbers: what C code prints would go into it."""
    file = tmp_path / "file"
    body = f"print('text'); print('text', file=sys.stderr); f = open({str(file)!r}, 'w'); "
    body += "import os; os.write(1, b'from C'); os.write(2, b'from C')"
    done = tool(body, closed, needs_reader)
    assert done.returncode == 0 and done.finished and b"Traceback" not in done.stderr
    assert file.read_bytes() == b""


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
def test_a_full_disk(tool):
    done = tool("print('text')", f"> {FULL}")
    assert done.returncode == 2
    assert done.stderr == (
        b"error: cannot write to standard output: No space left on device; free space, or send it "
        b"elsewhere\n"
    )
    done = tool("print('text', flush=True)", f"> {FULL}")
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and not done.finished
    done = tool("print('text', flush=True)", f"> {FULL}", needs_reader=False)
    assert (done.returncode, done.stderr, done.finished) == (0, b"", True)
    done = tool("print('text', file=sys.stderr)", f"2> {FULL}")
    assert (done.returncode, done.finished) == (0, True)


def test_mistakes_keep_their_code(tool):
    done = tool("print('text'); raise UserError('so it is')", "| true")
    assert (done.returncode, done.stderr) == (141, b"error: so it is\n")
    done = tool("print('text'); raise UserError('so it is')", "2>&-")
    assert done.returncode == 2
    done = tool("raise BrokenPipeError('of a worker')")  # not that of standard output
    assert done.returncode == 1 and b"of a worker" in done.stderr


def test_a_descriptor_drops_or_raises():
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as stream:
        with pytest.raises(streams.NobodyReads):
            print("text", file=streams.guarded(stream, strict=True), flush=True)
        print("text", file=streams.guarded(stream, strict=False), flush=True)
    if FULL.exists():
        with FULL.open("w") as stream:
            with pytest.raises(UserError, match="cannot write to standard output: No space"):
                print("text", file=streams.guarded(stream, strict=True), flush=True)
