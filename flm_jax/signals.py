"""Asking a running program to end in order."""

import signal
import sys
import threading
from typing import Any


class StopRequest:
    """SIGTERM and Ctrl-C ask for a checkpoint and an orderly end; a second Ctrl-C interrupts."""

    def __init__(self):
        self.signal: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            return self  # Python allows handlers in the main thread only
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._note)
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
        print(f"\n{self.name}: will save and stop after this step", file=sys.stderr, flush=True)
