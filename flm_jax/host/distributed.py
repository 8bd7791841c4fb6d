"""Several processes as one job: finding the others, agreeing, and ending together.

`session` starts JAX's runtime when there is more than one process (flags, Slurm, TPU slices or
plain environment variables say so) and does nothing otherwise. Inside it

    is_main()    whether this process writes logs, reports and samples
    meet(name)   a barrier on the host; no device takes part
    Agreement    one small number from every process, its maximum known to all at the same step
    preempted    whether the runtime got a notice that a machine will be taken away

An error in one process ends all of them: the others say which one failed and why. Exit codes are
in docs/operations.md: 75 asks the launcher for a restart, 1 and 2 do not.
"""

import collections
import contextlib
import dataclasses
import os
import pathlib
import re
import socket
import sys
import threading
import traceback
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.errors import UserError
from flm_jax.host import sharding
from flm_jax.host.watchdog import EXIT_CODE, Watchdog

_BRIEFLY = 2.0  # so long joining may take without a word
# A broken network in the runtime's errors, which are RuntimeError or ValueError and have a status:
# "UNKNOWN: Gloo AllGather failed: ... Connection closed by peer".
_NETWORK = re.compile(
    r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED): "
    r"|^[A-Z_]+: .*(?i:gloo|nccl|connection (closed|reset))",
    re.DOTALL,
)
_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
_DAY = 24 * 3600.0
_watchdog: Watchdog | None = None
_calls: collections.Counter[str] = collections.Counter()


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Who takes part. None in the first three fields: JAX asks the platform (TPU slices).

    ``local_device``: the only accelerator of this host that this process uses; None: all.
    """

    source: str
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    local_device: int | None = None


class _Named(NamedTuple):
    """A cluster whose launcher says everything, not yet checked; the fields of `Cluster`."""

    source: str
    coordinator: str
    num_processes: int
    process_id: int
    local_device: int | None = None


def detect(
    wanted: bool | None = None,
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
    environ: Mapping[str, str] = os.environ,
    tpu_hosts: int | None = None,
) -> Cluster | None:
    """The job that this process is part of; None for a process of its own.

    Args:
      wanted: True: there must be one; False: ignore everything; None: look for one.
      coordinator: the flag; all three or none.
      num_processes: likewise.
      process_id: likewise.
      tpu_hosts: hosts of this TPU slice; None: ask the machine.

    Raises UserError if it is wanted but not found, or the flags are incomplete.
    """
    given = {
        "coordinator": coordinator or None,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if wanted is False:
        if len(missing) < 3:
            raise UserError("--nodistributed contradicts --coordinator; omit one of them")
        return None
    if len(missing) < 3:
        if not coordinator or num_processes is None or process_id is None:
            raise UserError(f"--{missing[0]} is missing; --coordinator=HOST:PORT, --num_processes "
                            "and --process_id belong together")  # fmt: skip
        return _checked(_Named("flags", coordinator, num_processes, process_id))
    named = _from_variables(environ) or _from_slurm(environ)
    if named is not None:
        return _checked(named)
    if tpu_hosts is None:
        tpu_hosts = _tpu_hosts(environ)
    if tpu_hosts > 1 or (wanted and tpu_hosts == 1):
        return Cluster("TPU slice")
    if wanted:
        raise UserError(
            "--distributed is given, but there is no Slurm step, no TPU slice and no "
            "JAX_COORDINATOR_ADDRESS here; give --coordinator=HOST:PORT --num_processes=N "
            "--process_id=I"
        )
    return None


def _checked(named: _Named) -> Cluster | None:
    host, colon, port = named.coordinator.rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
        raise UserError(
            f"the coordinator {named.coordinator!r} is not HOST:PORT; give the address of process "
            "0 with a free port, for example 10.0.0.2:8476"
        )
    if named.num_processes < 1 or not 0 <= named.process_id < named.num_processes:
        raise UserError(
            f"process {named.process_id} of {named.num_processes} cannot be; process ids go "
            "from 0 to the number of processes - 1"
        )
    return Cluster(*named) if named.num_processes > 1 else None


def _from_variables(environ: Mapping[str, str]) -> _Named | None:
    """JAX_COORDINATOR_ADDRESS and two numbers, as launchers on Kubernetes set them."""
    address = environ.get("JAX_COORDINATOR_ADDRESS")
    count = environ.get("JAX_NUM_PROCESSES", environ.get("NNODES"))
    index = environ.get("JAX_PROCESS_ID")
    index = index or environ.get("NODE_RANK") or environ.get("JOB_COMPLETION_INDEX")
    if not address or count is None or index is None:
        return None
    if ":" not in address:
        address += ":" + environ.get("JAX_COORDINATOR_PORT", "8476")
    return _Named("environment", address, _number(count), _number(index))


def _from_slurm(environ: Mapping[str, str]) -> _Named | None:
    """A step started by srun; the script around it (sbatch, salloc) is not one."""
    names = "SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID"
    if any(name not in environ for name in names):
        return None
    job, nodes, count, index = (environ[name] for name in names)
    if (found := re.match(r"([^,\[]+)(?:\[([^,\-\]]+))?", nodes)) is None:
        raise UserError(f"SLURM_STEP_NODELIST={nodes!r} names no machine; check the launcher")
    host, first = found.groups()
    port = 61440 + _number(job) % 4096  # the same on all nodes, another one for the next job
    # node tasks "2(x3),1": with more than one on a node each takes one accelerator
    tasks = re.match(r"\d+", environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    shared = tasks is not None and tasks.group() != "1"
    local = _number(environ.get("SLURM_LOCALID", "0")) if shared else None
    return _Named("Slurm", f"{host}{first or ''}:{port}", _number(count), _number(index), local)


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f"the environment of this job says {text!r} where a number of processes belongs; check "
            "the launcher"
        ) from None


def _tpu_hosts(environ: Mapping[str, str]) -> int:
    """Hosts of the TPU slice that this machine belongs to; 0 without a TPU."""
    if environ.get("MEGASCALE_COORDINATOR_ADDRESS"):
        return 2  # several slices
    if "TPU_WORKER_HOSTNAMES" in environ:  # GKE
        return len(environ["TPU_WORKER_HOSTNAMES"].split(","))
    if not any(pathlib.Path(name).exists() for name in ("/dev/accel0", "/dev/vfio/0")):
        return 0
    request = urllib.request.Request(
        _METADATA + "worker-network-endpoints", headers={"Metadata-Flavor": "Google"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return len(answer.read().decode().split(","))
    except OSError:
        return 0  # a graphics card, or a TPU machine of another kind


@contextlib.contextmanager
def session(
    cluster: Cluster | None, watchdog_seconds: float, join_seconds: float
) -> Iterator[None]:
    """Runs the body as one process of ``cluster`` (None: alone) and ends with the others.

    Must be entered before anything touches a device. If the others cannot be reached within
    ``join_seconds``, this process ends with `watchdog.EXIT_CODE`, so that the job is restarted. An
    exception in the body ends this process at once with exit code 2 (UserError), `EXIT_CODE`
    (TryAgain, a broken network) or 1, after telling the others, who end with the same code. If
    another process dies, this one ends within ``watchdog_seconds`` with `EXIT_CODE`.
    """
    global _watchdog
    if cluster is None:
        yield
        return
    _start(cluster, watchdog_seconds, join_seconds)
    try:
        _watchdog = Watchdog(
            jax.process_index(), jax.process_count(), watchdog_seconds, _client(),
            _coordinator_host(),
        )  # fmt: skip
    except RuntimeError as error:
        if not is_network(error):
            raise
        _cannot_join(cluster, _first_line(error))  # another process has gone since
    try:
        yield
        meet("the end")
    except BaseException as error:
        _fail(error, _watchdog)
    _watchdog.close()
    jax.distributed.shutdown()


def _start(cluster: Cluster, watchdog_seconds: float, join_seconds: float) -> None:
    local = cluster.local_device
    if cluster.coordinator is not None and cluster.process_id == 0:
        _check_port(cluster, int(cluster.coordinator.rpartition(":")[2]))
    joined = threading.Event()
    patience = threading.Thread(
        target=_be_patient, args=(cluster, joined, join_seconds), name="joining", daemon=True
    )
    patience.start()
    try:
        jax.distributed.initialize(
            coordinator_address=cluster.coordinator,
            num_processes=cluster.num_processes,
            process_id=cluster.process_id,
            local_device_ids=None if local is None else [local],
            cluster_detection_method=None if cluster.coordinator is None else "deactivate",
            # The runtime's own checks stay as a second line: they end a process without a sentence.
            initialization_timeout=round(join_seconds + 60),
            heartbeat_timeout_seconds=max(10, round(2 * watchdog_seconds)),
            shutdown_timeout_seconds=60,
        )
    except ValueError as error:  # nothing here says who the others are
        raise UserError(
            f"this process does not find the others ({cluster.source}): {_first_line(error)}; give "
            "--coordinator=HOST:PORT --num_processes=N --process_id=I"
        ) from error
    except (jax.errors.JaxRuntimeError, OSError) as error:
        _cannot_join(cluster, _first_line(error))
    finally:
        joined.set()


def _check_port(cluster: Cluster, port: int) -> None:
    """Ends process 0 with a sentence where the runtime would crash: its port is taken."""
    if "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:
        return  # it listens somewhere else
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=dual).close()
    except PermissionError as error:
        raise UserError(
            f"process 0 may not open port {port}; give --coordinator another one, above 1023"
        ) from error
    except OSError as error:
        _cannot_join(
            cluster, f"port {port} cannot be opened here ({os.strerror(error.errno or 0)})"
        )


def _be_patient(cluster: Cluster, joined: threading.Event, seconds: float) -> None:
    """Says that this process waits for others, and ends it when it has waited long enough."""
    if joined.wait(min(_BRIEFLY, seconds)):
        return
    print(f"waiting for the other processes at {_where(cluster)} ({cluster.source}), at most "
          f"{seconds:g} s", file=sys.stderr, flush=True)  # fmt: skip
    if joined.wait(seconds - min(_BRIEFLY, seconds)):
        return
    why = _why_nobody_came(cluster)
    if not joined.is_set():
        _cannot_join(cluster, f"{why} within {seconds:g} s")


def _why_nobody_came(cluster: Cluster) -> str:
    if cluster.coordinator is None:
        return "not all workers came"
    others = f"not all of the {cluster.num_processes} processes came"
    if cluster.process_id == 0:
        return others
    host, _, port = cluster.coordinator.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:  # no such name, refused, no answer
        return f"process 0 does not answer ({error.strerror or error})"
    return f"process 0 is there, but {others}"


def _where(cluster: Cluster) -> str:
    return cluster.coordinator or "the TPU slice"


def _cannot_join(cluster: Cluster, why: str) -> NoReturn:
    """Ends this process, which has no others to tell; from whatever thread."""
    who = "" if cluster.process_id is None else f"process {cluster.process_id} of "
    who += "the slice" if cluster.num_processes is None else str(cluster.num_processes)
    print(f"error: this process cannot join the others at {_where(cluster)} ({cluster.source}): "
          f"{why}; check that all processes were started with the same flags and that the port is "
          f"open between them; it ends, so that the job can be restarted ({who}, exit code "
          f"{EXIT_CODE})", file=sys.stderr, flush=True)  # fmt: skip
    sys.stdout.flush()
    os._exit(EXIT_CODE)  # the ordinary end would wait for the runtime's threads


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def exit_code(error: BaseException) -> int:
    """With which code a process of a job ends because of an exception."""
    if isinstance(error, UserError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    return EXIT_CODE if is_network(error) else 1


def is_network(error: BaseException) -> bool:
    """Whether this is how the runtime says that another process cannot be reached."""
    return isinstance(error, RuntimeError | ValueError) and bool(_NETWORK.search(str(error)))


def _fail(error: BaseException, watchdog: Watchdog) -> NoReturn:
    """Says what went wrong here, tells the others, and ends this process."""
    who = f"process {jax.process_index()} of {jax.process_count()}"
    code = exit_code(error)
    if isinstance(error, UserError):
        if code == EXIT_CODE:  # perhaps the death of a peer, which has its own sentence
            watchdog.wait_for_verdict()
        text = str(error)
    elif isinstance(error, KeyboardInterrupt):
        text = "interrupted"
    elif isinstance(error, SystemExit):
        text = f"exit {error.code}"
    else:
        watchdog.wait_for_verdict()  # a peer's death breaks collectives before it is announced
        traceback.print_exception(error)
        text = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
    print(f"error: {text} ({who})", file=sys.stderr, flush=True)
    watchdog.tell_failure(code, text.replace("\n", " "))
    sys.stdout.flush()
    os._exit(code)  # the ordinary end would wait for processes that wait for this one


def _client():
    """What the processes of a job have in common, once `jax.distributed` has been started."""
    from jax._src import distributed

    client = distributed.global_state.client
    assert client is not None
    return client


def _coordinator_host() -> str:
    from jax._src import distributed

    address = distributed.global_state.coordinator_address
    assert address is not None  # JAX fills it in where the platform knows
    return address.rpartition(":")[0]


def is_main() -> bool:
    """Whether this process writes what people read. All processes compute."""
    return jax.process_index() == 0


def process_id() -> int:
    """Which process this is; unlike jax.process_index it touches no device."""
    from jax._src import distributed

    return distributed.global_state.process_id


def meet(name: str, seconds: float = _DAY) -> None:
    """Returns when every process has called it with this name, as often as this one."""
    if jax.process_count() > 1:
        _client().wait_at_barrier(_numbered(name), timeout_in_ms=int(1000 * seconds))


def told(name: str, text: str) -> str:
    """What process 0 says, in every process; all call it with this name equally often."""
    if jax.process_count() == 1:
        return text
    key = _numbered(name)
    if is_main():
        _client().key_value_set(key, text)
        return text
    return _client().blocking_key_value_get(key, int(1000 * _DAY))


def _numbered(name: str) -> str:
    """The name of this call: the runtime takes each only once, a job may train several models."""
    _calls[name] += 1
    return f"flm_jax {name} {_calls[name]}"


def before_end(function: Callable[[], None]) -> None:
    """Has the function called where another process's failure ends this one without unwinding."""
    if _watchdog is not None:
        _watchdog.before_end = function


def preempted(step: int) -> bool:
    """Whether the runtime says that all processes should save at this step and end.

    It hears SIGTERM, and the platform's notice where there is one, in any process, and answers
    True in all of them at the same step. All must ask at every step.
    """
    if jax.process_count() == 1:
        return False
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


def gathered(array: jax.Array) -> np.ndarray:
    """All of an array of the mesh on every host; every process calls it."""
    if array.is_fully_addressable:
        return np.asarray(jax.device_get(array))
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


class Agreement:
    """The maximum over all processes of a small number each, the same for all at the same call.

    A process alone gets its own number back. With several the answer is that to the call before:
    devices work on it while the next step is prepared, so that nothing waits.
    """

    def __init__(self, mesh: jax.sharding.Mesh):
        self._sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(sharding.AXES))
        self._max = jax.jit(jnp.max, out_shardings=sharding.replicated(mesh))
        self._asked: jax.Array | None = None

    def __call__(self, number: int) -> int:
        if jax.process_count() == 1:
            return number
        before, self._asked = self._asked, self._max(self._spread(number))
        return 0 if before is None else int(jax.device_get(before))

    def _spread(self, number: int) -> jax.Array:
        """(devices,) with this process's number on its own devices."""
        shape = (self._sharding.mesh.size,)

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            return np.full(np.empty(shape)[index].shape, number, np.int32)

        with jax.transfer_guard("allow"):  # meant, though JAX calls it implicit
            return jax.make_array_from_callback(shape, self._sharding, part)
