"""Options of commands that may be one of several processes of a job; see launch/README.md."""

import contextlib
import dataclasses
from collections.abc import Iterator

from flm_jax.knobs import knob


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joining:
    """Whether and how this process finds the others."""

    distributed: bool | None = knob(
        None, "this process is one of several (left out: found out by itself)"
    )
    coordinator: str = knob("", "HOST:PORT of process 0; needs the next two")
    num_processes: int | None = knob(None, "processes in all", at_least=1)
    process_id: int | None = knob(None, "which one this is, from 0", at_least=0)
    join_seconds: float = knob(
        300.0, "how long to wait for the others before ending with 75", at_least=1.0
    )

    @contextlib.contextmanager
    def session(self, watchdog_seconds: float) -> Iterator[None]:
        """Inside it this process is one of the job; see `host.distributed.session`."""
        from flm_jax.host import distributed

        cluster = distributed.detect(
            self.distributed, self.coordinator, self.num_processes, self.process_id
        )
        with distributed.session(cluster, watchdog_seconds, self.join_seconds):
            yield
