"""Bars stay quiet in log files; waiting shows itself, and ends however it ends."""

import io
import sys
import threading

import pytest

from flm_jax.host import progress


class Screen(io.StringIO):
    """A standard error that a test can wait for."""

    def __init__(self, terminal: bool = False):
        super().__init__()
        self.terminal, self.written = terminal, threading.Condition()

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        with self.written:
            self.written.notify_all()
            return super().write(text)

    def wait_for(self, text: str) -> None:
        with self.written:
            assert self.written.wait_for(lambda: text in self.getvalue(), 20), self.getvalue()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["file", "terminal"])
def open_screen(request, monkeypatch):
    """A function that puts a screen in the place of standard error (after pytest's own)."""

    def put():
        monkeypatch.setattr(sys, "stderr", Screen(request.param == "terminal"))
        return sys.stderr

    return put


def waiting(clock, text="compiling", **options):
    return progress.Waiting(text, **{"delay": 0, "refresh": 1e-3, "clock": clock} | options)


def left_open():
    return [thread for thread in threading.enumerate() if thread.name == "waiting"]


def test_progress_in_a_log_file_is_a_few_whole_lines(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.Progress(1000, start_step=400) as shown:
        for step in range(401, 1001):
            shown.update(step, loss=2.0, tokens_per_second=12345.6)
    text = stream.getvalue()
    assert "\r" not in text and text.endswith("\n")
    assert len(text.splitlines()) <= 3  # first and last
    assert "1000/1000" in text and "loss=2.000" in text and "12,346" in text


def test_the_time_left_is_that_to_the_end_that_comes_first(monkeypatch):
    """The last step, or train.max_minutes."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.Progress(1000) as shown:
        bar = shown._bar
        bar.start_t -= 50

        def left(step, seconds_left=None):
            shown.update(step, seconds_left=seconds_left)
            bar._ema_dn = bar._ema_dt = lambda: 0  # the mean rate: a step in 0.5 s
            return str(bar)[str(bar).index("<") : -1].strip()

        assert left(100) == "<07:30"
        assert left(100, seconds_left=3600.0) == "<07:30"
        assert left(100, seconds_left=119.6) == "<01:59 to train.max_minutes"
        assert left(100, seconds_left=-3.0) == "<00:00 to train.max_minutes"
    with progress.Progress(10) as shown:
        assert "<?" in str(shown._bar)
        shown.update(0, seconds_left=60.0)
        assert "<01:00 to train.max_minutes" in str(shown._bar)


def test_bar_iterates(capsys):
    assert list(progress.bar(range(3), desc="three", delay=2)) == [0, 1, 2]
    assert "three" not in capsys.readouterr().err


def test_waiting_tells_the_seconds_and_leaves_one_line(open_screen):
    screen = open_screen()
    clock = Clock()
    with waiting(clock):
        clock.now += 7
        screen.wait_for("compiling, 7 s")
        clock.now += 200
        screen.wait_for("compiling, 3.5 min")
    assert not left_open()
    assert screen.getvalue().split("\r")[-1].endswith("compiling: 3.5 min\n")
    assert screen.terminal == ("\r" in screen.getvalue())
    assert not screen.terminal or screen.getvalue().count("\n") == 1


def test_what_is_over_soon_says_nothing(open_screen):
    screen = open_screen()
    with progress.Waiting("compiling", delay=1e6):
        pass
    assert not screen.getvalue() and not left_open()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_ends_the_waiting_and_nothing_is_said_to_be_done(open_screen, error):
    screen = open_screen()
    with pytest.raises(error), waiting(Clock()):
        screen.wait_for("compiling, 0 s")
        raise error
    assert not left_open() and "compiling:" not in screen.getvalue()


def test_batches_are_counted_and_the_rest_is_estimated(open_screen):
    open_screen()
    clock, seen = Clock(), []
    with waiting(clock, "sampling", parts=3) as line:
        for item in line.each("abc"):
            seen.append((item, line.line()))
            clock.now += 10
            if item == "b":
                clock.now += 5
                seen.append(line.line())
                clock.now += 100  # longer than expected
                seen.append(line.line())
    assert seen == [
        ("a", "sampling: batch 1 of 3, 0 s"),
        ("b", "sampling: batch 2 of 3, 10 s, about 20 s left"),
        "sampling: batch 2 of 3, 25 s, about 5 s left",
        "sampling: batch 2 of 3, 2.1 min, about 0 s left",
        ("c", "sampling: batch 3 of 3, 2.1 min, about 62 s left"),
    ]


def test_waiting_leaves_an_active_bar_whole(open_screen):
    screen = open_screen()
    clock = Clock()
    with progress.Progress(100) as shown:
        shown.update(40, loss=2.0)
        with waiting(clock):
            screen.wait_for("compiling, 0 s")
        shown.update(100, loss=1.0)
    for line in screen.getvalue().replace("\r", "\n").replace("\x1b[A", "\n").splitlines():
        assert not ("training" in line and "compiling" in line), line
    assert "compiling: 0 s\n" in screen.getvalue() and "100/100" in screen.getvalue()
    assert screen.terminal == ("\x1b" in screen.getvalue())


def test_only_the_first_call_of_a_jitted_function_is_announced(monkeypatch):
    started = []
    monkeypatch.setattr(progress.Waiting, "__enter__", lambda self: started.append(self))
    monkeypatch.setattr(progress.Waiting, "__exit__", lambda *_: None)
    add = progress.announced(lambda a, b: a + b, "compiling addition")
    assert [add(1, 2), add(3, 4)] == [3, 7] and len(started) == 1
