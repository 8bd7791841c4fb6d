"""Ends the processes of a job when one of them dies, so that a scheduler can restart all.

Every process holds a TCP connection to process 0. The kernel closes it when a process dies for
whatever reason, at once, and keep-alive probes find a machine that is gone without a word. Nothing
here depends on a thread that must beat in time: a process that computes for minutes is not dead.
"""

import contextlib
import ctypes
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol, TextIO

from flm_jax.errors import TryAgain

EXIT_CODE = TryAgain.exit_code  # restarting the job is right
_KEY = "flm_jax watchdog"
_BYE, _FAILED = "bye", "failed"


class Store(Protocol):
    """What is used of the runtime's client: a value that one process writes and others wait for."""

    def key_value_set(self, key: str, value: str, /) -> None: ...

    def blocking_key_value_get(self, key: str, timeout_in_ms: int, /) -> str: ...


class Watchdog:
    """Watches from construction until `close`.

    Args:
      process: which one this is.
      processes: how many there are.
      seconds: until a silent machine counts as dead.
      store: key_value_set and blocking_key_value_get of the runtime, to find process 0's port.
      host: a name of process 0's machine that all others can reach.
    """

    def __init__(self, process: int, processes: int, seconds: float, store: Store, host: str):
        self._process, self._processes, self._seconds = process, processes, seconds
        self.before_end: Callable[[], None] | None = None  # called before this process is ended
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._peers: dict[int, socket.socket] = {}
        _delay_abort()
        if process == 0:
            # "" listens on IPv4 and, where there is such a thing, IPv6.
            dual = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if dual else socket.AF_INET
            server = socket.create_server(
                ("", 0), family=family, backlog=processes, dualstack_ipv6=dual
            )
            token = secrets.token_hex(8)
            store.key_value_set(_KEY, f"{host} {server.getsockname()[1]} {token}")
            work, arguments = self._serve, (server, token)
        else:
            answer = store.blocking_key_value_get(_KEY, int(1000 * max(60.0, seconds)))
            try:
                hub = self._connect(*answer.split())
            except OSError as error:
                print(f"warning: no watchdog, process 0 cannot be reached ({error}); the runtime "
                      "will notice a dead process later", file=sys.stderr)  # fmt: skip
                return
            self._peers[0] = hub
            work, arguments = self._listen, (0, hub.makefile())
        threading.Thread(target=work, args=arguments, name="watchdog", daemon=True).start()

    def close(self) -> None:
        """Takes leave: the end of this process is none of the others' concern any more."""
        self._over.set()
        self._send_all(_BYE)

    def tell_failure(self, code: int, sentence: str) -> None:
        """Makes all other processes end with ``code`` and the sentence."""
        self._over.set()
        self._send_all(f"{_FAILED} {code} process {self._process} of {self._processes} failed: "
                       f"{sentence}")  # fmt: skip
        time.sleep(0.2)  # the text should be there before the end of the connection

    def wait_for_verdict(self) -> None:
        """Gives the watchdog time to end this process because of another one's death."""
        time.sleep(min(5.0, self._seconds))

    def _connect(self, host: str, port: str, token: str) -> socket.socket:
        hub = socket.create_connection((host.strip("[]"), int(port)), timeout=self._seconds)
        self._keep_alive(hub)
        hub.sendall(f"{token} {self._process}\n".encode())
        return hub

    def _keep_alive(self, peer: socket.socket) -> None:
        """The kernel gives a silent peer up after ``seconds``: idle time + 3 probes."""
        peer.settimeout(None)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        probe = max(1, int(self._seconds / 6))
        for name, value in (
            ("TCP_KEEPIDLE", 2 * probe),
            ("TCP_KEEPINTVL", probe),
            ("TCP_KEEPCNT", 3),
        ):
            if hasattr(socket, name):
                peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def _serve(self, server: socket.socket, token: str) -> None:
        """Process 0: takes in every other process, then watches each in a thread."""
        while len(self._peers) < self._processes - 1:
            try:
                peer, _ = server.accept()
                self._keep_alive(peer)
                peer.settimeout(5)
                lines = peer.makefile()
                said, _, index = lines.readline().strip().partition(" ")
                if said != token:
                    peer.close()  # somebody else's port scan
                    continue
                peer.settimeout(None)
            except (OSError, ValueError):
                continue
            with self._lock:
                self._peers[int(index)] = peer
            threading.Thread(
                target=self._listen, args=(int(index), lines), name="watchdog", daemon=True
            ).start()
        server.close()

    def _listen(self, index: int, lines: TextIO) -> None:
        """Follows one connection until its end, orderly or not."""
        line = ""
        with contextlib.suppress(OSError):
            line = lines.readline()
        word, _, rest = line.strip().partition(" ")
        if word == _BYE:
            return
        if word == _FAILED:
            code, _, sentence = rest.partition(" ")
            self._end(int(code), sentence)
        else:
            self._end(EXIT_CODE, f"process {index} of {self._processes} died")

    def _end(self, code: int, sentence: str) -> None:
        """Ends this process and, from process 0, all others."""
        with self._lock:
            if self._over.is_set():
                return
            self._over.set()
        advice = (
            "; this one ends too, so that the job can be restarted" if code == EXIT_CODE else ""
        )
        print(f"error: {sentence}{advice} (process {self._process}, exit code {code})",
              file=sys.stderr, flush=True)  # fmt: skip
        if self._process == 0:
            self._send_all(f"{_FAILED} {code} {sentence}")
            time.sleep(0.2)  # the text should be there before the end of the connection
        if self.before_end is not None:
            with contextlib.suppress(Exception):  # nothing may keep this process
                self.before_end()
        os._exit(code)

    def _send_all(self, line: str) -> None:
        for peer in list(self._peers.values()):
            with contextlib.suppress(OSError):
                peer.sendall(f"{line}\n".encode())


def _delay_abort() -> None:
    """Lets the watchdog speak first where the runtime aborts the process.

    When process 0 dies, the runtime's own connection to it breaks in the same moment, and it calls
    abort(). The handler of that signal becomes sleep(), in C: the aborting thread waits for as many
    seconds as the signal has as number (6), and the others go on meanwhile.
    """
    with contextlib.suppress(OSError, AttributeError):
        c = ctypes.CDLL(None)
        c.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
        c.signal.restype = ctypes.c_void_p
        c.signal(signal.SIGABRT, ctypes.cast(c.sleep, ctypes.c_void_p))
