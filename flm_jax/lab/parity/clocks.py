"""The kinds time (tau <-> t) and times (drawing times, splitting the batch)."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from flm_jax.flow import clock as clock_lib
from flm_jax.flow import times
from flm_jax.lab.parity import networks
from flm_jax.lab.parity.checks import Checks
from flm_jax.lab.parity.goldens import Case, GoldenError
from flm_jax.losses import FlowMatching

Setting = Mapping[str, Any]  # of one draw, as the manifest says it

# No record says how exact these are. Float64: the same quadrature and spline, other rounding.
# Float32: what is stored as float32 is exact to an ulp; derivatives lose a little more.
CLOCK64 = {"out/tau": 1e-12, "out/t": 1e-10, "out/t_edge": 1e-8, "out/dtau_dt": 1e-9}
CLOCK32 = {"out/tau_f32": 3e-7, "out/t_f32": 3e-7, "out/dtau_dt_f32": 3e-6}
KNOTS64 = 1e-12
TIMES32 = 2e-7
TIMES = {
    "single": lambda loss, drawn: loss.times(drawn),
    "pair": lambda loss, drawn: times.pairs(loss.times(drawn)),
}


def time(case: Case, checks: Checks) -> None:
    """The clock of one vocabulary size, both ways, with its derivative and its knots."""
    size = case.option("K")
    with checks.precision(64):
        clock = clock_lib.build(size)
        ours = {
            "out/tau": clock.to_tau(networks.wide(case["in/t"])),
            "out/t": clock.to_t(networks.wide(case["in/tau"])),
            "out/t_edge": clock.to_t(networks.wide(case["in/tau_edge"])),
            "out/dtau_dt": clock.dtau_dt(networks.wide(case["in/t"])),
        }
        for name, array in ours.items():
            scale = np.max(np.abs(case[name]))
            checks.close(name, array, case[name], CLOCK64[name] * scale)
        quadrature = clock_lib.decoding_accuracy(case["in/t"], size, "gauss_hermite")
        quadrature = np.clip(quadrature + (case["in/t"] - 1.0) * clock_lib.SLOPE, 0.0, 1.0)
        name = "out/tau_of_t_quadrature"
        checks.close(name, quadrature, case[name], KNOTS64)
        assert clock.forward is not None and clock.inverse is not None  # as `build` makes it
        checks.close(
            "mid/knot_t", clock.forward.knots[case["mid/knot_index"]], case["mid/knot_t"], 0
        )
        knots = clock.forward.coefficients[3][case["mid/knot_index"]]
        checks.close("mid/knot_tau", knots, case["mid/knot_tau"], KNOTS64)
        count = clock.inverse.knots.size
        checks.exact("mid/inverse_knot_count", count, case["mid/inverse_knot_count"])
    with checks.precision(32):
        clock = clock_lib.build(size)
        ours = {
            "out/tau_f32": clock.to_tau(networks.wide(case["in/t_f32"])),
            "out/t_f32": clock.to_t(networks.wide(case["in/tau_f32"])),
            "out/dtau_dt_f32": clock.dtau_dt(networks.wide(case["in/t_f32"])),
        }
        for name, array in ours.items():
            scale = np.max(np.abs(case[name]))
            checks.close(name, array, case[name], CLOCK32[name] * scale)


def draws(case: Case, checks: Checks) -> None:
    """Stratified times, sorted pairs, and how many samples of each kind a process gets."""
    settings = case.entry.get("settings")
    if not settings:
        raise GoldenError("the manifest does not give the settings of this case")
    with checks.precision(32):
        for setting in settings:
            kind = setting["kind"]
            if kind not in ("single", "pair", "single+pair", "split"):
                raise GoldenError(f"{kind!r} is not a known kind of setting")
            if kind == "split":
                _split(case, checks, setting)
                continue
            for part in kind.split("+"):
                _drawn(case, checks, setting, part)


def _drawn(case: Case, checks: Checks, setting: Setting, kind: str) -> None:
    prefix = f"{kind}{setting['index']}"
    loss = FlowMatching(setting["tmin"], setting["tmax"], stratified=setting["anti"])
    drawn = {"uniform": networks.wide(case[f"{prefix}/draw/eps"])}
    if setting["anti"]:
        drawn["permutation"] = networks.wide(case[f"{prefix}/draw/perm"])
    tau = jax.tree.map(np.asarray, jax.jit(TIMES[kind], static_argnums=0)(loss, drawn))
    processes, process = _place(setting)
    start = process * (setting["gbs"] // processes)  # a chunk may be longer than the batch
    own = slice(start, start + setting["n"])
    if kind == "single":
        mine = tau[own]
        checks.close(f"{prefix}/out/tau", mine, case[f"{prefix}/out/tau"], TIMES32)
        return
    for name, column in zip(("tau_s", "tau_t"), tau, strict=True):
        checks.close(f"{prefix}/out/{name}", column[own], case[f"{prefix}/out/{name}"], TIMES32)


def _split(case: Case, checks: Checks, setting: Setting) -> None:
    """Counts of diagonal, boundary and off-diagonal samples; where they exceed the local batch
    the official code cuts at random, so that only bounds and the sum can be compared."""
    prefix, n = f"split{setting['index']}", setting["n"]
    processes, process = _place(setting)
    whole = official_split(setting["gbs"], setting["diag"], setting["bp"], processes, process)
    counts = case[f"{prefix}/out/counts"]
    kinds = ("diag", "boundary", "offdiag")
    sizes = [len(case[f"{prefix}/out/idx_{name}"]) for name in kinds]
    checks.exact(f"{prefix}/out/counts of the index sets", sizes, counts)
    if sum(whole) <= n:
        checks.exact(f"{prefix}/out/counts", list(whole), counts)
        return
    cut = all(a <= b for a, b in zip(counts, whole, strict=True))
    checks.exact(f"{prefix}/out/counts (cut to the batch)", [cut, n], [True, int(sum(counts))])


def _place(setting: Setting) -> tuple[int, int]:
    """(processes, index of this one); accumulation steps count as processes of their own."""
    if setting["accum"] is None:
        return 1, 0
    trainer = setting["tr"]
    devices = trainer.get("num_devices", 1)
    parts = trainer.get("accumulate_grad_batches", 1)
    device = trainer.get("node_rank", 0) * devices + trainer.get("local_rank", 0)
    return trainer.get("num_nodes", 1) * devices * parts, device * parts + setting["accum"]


def official_split(
    global_size: int,
    diagonal_fraction: float,
    boundary_prob: float,
    processes: int = 1,
    process: int = 0,
) -> tuple[int, int, int]:
    """How many diagonal, boundary and off-diagonal samples one process of the official code has.

    Each kind's count over the global batch is shared out separately, the first
    processes taking the remainders: the three counts of a process need not add up to its batch.
    The official code then leaves rows without a kind (no loss), or cuts a random choice of the
    surplus; training here splits the global batch by index and loses nothing.
    """
    diagonal = int(global_size * diagonal_fraction)
    share = diagonal_fraction + (1.0 - diagonal_fraction) / boundary_prob
    boundary = int(global_size * share) - diagonal

    def share_of(count: int) -> int:
        return count // processes + (process < count % processes)

    rest = global_size - diagonal - boundary
    return share_of(diagonal), share_of(boundary), share_of(rest)
