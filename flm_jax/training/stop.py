"""Asking a running program to end in order."""

import os
import signal
import sys
import threading
from typing import Any

# Ctrl-C; what ends a program everywhere; a closed terminal; what `sbatch --signal=USR1` sends.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
MAY_BE_IGNORED = ("SIGHUP", "SIGUSR1")  # nohup has it so


class StopRequest:
    """The signals of `NAMES` ask for a checkpoint and an orderly end; a second Ctrl-C interrupts.

    A signal that the platform lacks cannot come, and a run under nohup goes on ignoring SIGHUP.
    """

    def __init__(self):
        self.signal: int | None = None
        self._old: dict[int, Any] = {}
        self._terminals: list[int] = []  # file descriptors

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            return self  # Python allows handlers in the main thread only
        for name in NAMES:
            number = getattr(signal, name, None)  # Windows has two of them
            if number is None:
                continue
            if name in MAY_BE_IGNORED and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._old[number] = signal.signal(number, self._note)
        self._terminals = [s.fileno() for s in (sys.stdout, sys.stderr) if s and s.isatty()]
        return self

    def __exit__(self, *_):
        for number, handler in self._old.items():  # None: a handler that is not Python's
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @property
    def name(self) -> str:
        """Of the signal that came, for example SIGTERM."""
        return signal.Signals(self.signal).name

    def _note(self, number, frame):
        del frame
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        self._leave_closed_terminals()
        print(f"\n{self.name}: will save and stop after this step", file=sys.stderr, flush=True)

    def _leave_closed_terminals(self) -> None:
        """A line to a terminal that is no more would be an error, before anything is saved."""
        for number in self._terminals:
            if not os.isatty(number):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
