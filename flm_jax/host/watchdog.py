"""Ends the processes of a job together, so that a scheduler can restart all.

A death is noticed by the runtime's own heartbeat, which ends all others by abort(): exit code 134,
and a message of the runtime. What this adds is an error: whoever fails says so, and with which
code, under a key of the runtime's store, which all others wait for.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol

from flm_jax.errors import TryAgain

EXIT_CODE = TryAgain.exit_code  # restarting the job is right
_KEY, _HEARD = "flm_jax failed", "flm_jax heard of it"
_DAY_MS = 24 * 3600 * 1000
_PATIENCE_S = 5.0  # with others that should hear of a failure, or tell of one


class Store(Protocol):
    """What is used of the runtime's client."""

    def key_value_set(self, key: str, value: str, /) -> None: ...

    def blocking_key_value_get(self, key: str, timeout_in_ms: int, /) -> str: ...


class Watchdog:
    """Listens from construction until `close`; ``store`` is the runtime's client."""

    def __init__(self, process: int, processes: int, store: Store):
        self._process, self._processes = process, processes
        self._who = f"process {process} of {processes}"
        self._store = store
        self.before_end: Callable[[], None] | None = None  # called before this process is ended
        self._over = threading.Event()
        threading.Thread(target=self._listen, name="watchdog", daemon=True).start()

    def close(self) -> None:
        """What others say is none of this process's concern any more."""
        self._over.set()

    def tell_failure(self, code: int, sentence: str) -> None:
        """Makes all other processes end with ``code`` and the sentence."""
        self._over.set()
        with contextlib.suppress(Exception):  # another one said so before, or process 0 is gone
            self._store.key_value_set(_KEY, f"{code} {self._who} failed: {sentence}")
        self._part()

    def wait_for_verdict(self) -> None:
        """Gives another process time to say why it ends, which broke what they do together."""
        time.sleep(_PATIENCE_S)

    def _listen(self) -> None:
        try:
            said = self._store.blocking_key_value_get(_KEY, _DAY_MS)
        except Exception:  # the end of the job, or process 0 is dead: the runtime ends this one
            return
        if self._over.is_set():
            return
        code, _, sentence = said.partition(" ")
        again = "; this one ends too, so that the job can be restarted"
        advice = again if int(code) == EXIT_CODE else ""
        print(f"error: {sentence}{advice} ({self._who}, exit code {code})",
              file=sys.stderr, flush=True)  # fmt: skip
        if self.before_end is not None:
            with contextlib.suppress(Exception):  # nothing may keep this process
                self.before_end()
        self._part()
        os._exit(int(code))

    def _part(self) -> None:
        """Process 0 goes last: without it the runtime aborts the others before they can speak."""
        with contextlib.suppress(Exception):  # one of them is dead
            if self._process:
                return self._store.key_value_set(f"{_HEARD} {self._process}", "")
            end = time.monotonic() + _PATIENCE_S
            for other in range(1, self._processes):
                left = max(1, int(1000 * (end - time.monotonic())))
                self._store.blocking_key_value_get(f"{_HEARD} {other}", left)
            time.sleep(0.2)
