"""Who may write below an address: one command at a time, though buckets know no locks.

The object LOCK.json says who. It is written only on condition that it is as it was read, which
both services check, and its holder writes it anew every `BEAT_S` seconds. Whoever finds it held
watches it: when it changes, its holder lives; when it has not for `SILENT_S`, he is taken for dead
and the lock is taken over. No clocks are compared. A holder that was only slow notices by the
failing condition, before it commits anything more.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from typing import Any

from flm_jax.checkpoint import stores
from flm_jax.checkpoint.address import Address
from flm_jax.errors import UserError
from flm_jax.host import progress

NAME = "LOCK.json"
BEAT_S = 10.0
SILENT_S = 60.0  # more than a request and the next beat may take
POLL_S = 1.0


class Lost(UserError):
    """Another command has taken the address over; nothing more may be written there."""


class Lease:
    """Held from `take` to `release`, by a thread that goes on saying so.

    Args:
      address: what is held.
      before: the `token` of a holder on this machine that is known to be dead ("" = none): it is
        not waited for.
    """

    def __init__(self, address: Address, before: str = ""):
        self._address, self._dead = address, before
        self._host = socket.gethostname()
        self.token = uuid.uuid4().hex
        self._beats = 0
        self._generation = b""
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.lost: Lost | None = None

    def take(self) -> str:
        """Returns the token of who held it last, "" if nobody did.

        Raises UserError if somebody does.
        """
        with self._address.reaching("locked"):
            while True:
                found, generation = self._read()
                if found and not found["free"] and not self._is_dead(found):
                    if not self._falls_silent(found, generation):
                        continue
                if self._write(generation):
                    break
        threading.Thread(target=self._go_on, name="lease", daemon=True).start()
        return found.get("token", "")

    def renew(self) -> None:
        """Raises Lost if another command has the address now, UserError if nobody can say."""
        with self._lock, self._address.reaching("locked"):
            if self.lost is None and not self._write(self._generation):
                found, generation = self._read()
                if found.get("token") != self.token:  # else: written, though the answer was lost
                    self.lost = Lost(
                        f"{self._address.url} was taken over by another command "
                        f"({found.get('holder', 'unknown')}) while this one did not answer; this "
                        "one ends, and what it has not saved is lost"
                    )
                self._generation = generation
            if self.lost is not None:
                raise self.lost

    def release(self) -> None:
        """Lets the next command have it at once; without a network it has to wait."""
        self._over.set()
        with self._lock, contextlib.suppress(Exception):
            if self.lost is None:
                self._write(self._generation, free=True)

    def _read(self) -> tuple[dict[str, Any], bytes]:
        """What the object says, and which version of it that is; {} without one."""
        read = self._address.store.read(NAME).result(timeout=stores.PATIENCE_S)
        try:
            found = json.loads(read.value)
        except ValueError:
            found = {}
        ours = isinstance(found, dict) and {"token", "free", "holder"} <= found.keys()
        return found if ours else {}, read.stamp.generation

    def _write(self, generation: bytes, free: bool = False) -> bool:
        """Writes the object if it is still that version; whether it was."""
        self._beats += 1
        said = {
            "token": self.token,
            "holder": f"{self._host}, process {os.getpid()}",
            "beats": self._beats,  # no two contents are equal
            "free": free,
        }
        written = self._address.store.write(NAME, json.dumps(said).encode(), if_equal=generation)
        made = written.result(timeout=stores.PATIENCE_S).generation
        self._generation = made or self._generation
        return bool(made)

    def _is_dead(self, found: dict[str, Any]) -> bool:
        here = found["holder"].startswith(f"{self._host},")
        return here and found["token"] == self._dead

    def _falls_silent(self, found: dict[str, Any], generation: bytes) -> bool:
        """Whether the holder is dead; False if he has let it go. UserError if he lives."""
        end = time.monotonic() + SILENT_S
        with progress.Waiting(f"waiting for a sign of {found['holder']}, which held the lock"):
            while time.monotonic() < end:
                time.sleep(POLL_S)
                now, other = self._read()
                if other == generation:
                    continue
                if now and not now["free"]:
                    raise UserError(
                        f"another command is training in {self._address.url} ({now['holder']}); "
                        "wait for it, or choose another --workdir"
                    )
                return False
        return True

    def _go_on(self) -> None:
        while not self._over.wait(BEAT_S):
            with contextlib.suppress(UserError):  # no network: it may be back at the next beat
                self.renew()
            if self.lost is not None:
                return
