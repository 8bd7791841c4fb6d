"""Which signals save: those of schedulers, terminals and people, each where it exists."""

import os
import pty
import signal
import subprocess
import sys
import types

import pytest

from flm_jax.training import stop as stop_lib
from flm_jax.training.stop import StopRequest

ALL = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]


@pytest.mark.parametrize("number", ALL)
def test_each_of_them_is_noted_and_given_back(number, capsys):
    before = [signal.getsignal(n) for n in ALL]
    with StopRequest() as stop:
        signal.raise_signal(number)
        assert (stop.signal, stop.name) == (number, signal.Signals(number).name)
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
    assert f"{stop.name}: will save and stop" in capsys.readouterr().err
    assert [signal.getsignal(n) for n in ALL] == before


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_what_is_ignored_stays_ignored(number):
    """A run under nohup outlives its terminal."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(number)
            assert stop.signal is None
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_platform_without_them_has_the_other_two(monkeypatch):
    names = ("SIGINT", "SIGTERM", "SIG_DFL", "SIG_IGN", "signal", "getsignal", "Signals")
    windows = types.SimpleNamespace(**{name: getattr(signal, name) for name in names})
    monkeypatch.setattr(stop_lib, "signal", windows)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
    assert stop.name == "SIGTERM"


TALKS = """
import fcntl, sys, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from flm_jax.training.stop import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    while stop.signal is None:
        time.sleep(0.01)
    print("saving", flush=True)
    print("saving", file=sys.stderr, flush=True)
open(sys.argv[1], "w").write(stop.name)
"""


def test_a_closed_terminal_is_no_error(tmp_path):
    """Writing to it would be one, before anything is saved."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", TALKS, str(tmp_path / "saved")],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    assert os.read(ours, 5) == b"ready"
    os.close(ours)
    assert process.wait(60) == 0
    assert (tmp_path / "saved").read_text() == "SIGHUP"
