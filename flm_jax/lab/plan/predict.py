"""The mesh that a run would take on some chips, whether it fits, and what it would cost."""

import dataclasses

from flm_jax import config as config_lib
from flm_jax.lab.plan import timing
from flm_jax.lab.plan.chips import Chip
from flm_jax.lab.plan.memory import memory
from flm_jax.lab.plan.program import Work

RESERVED = 0.1  # share of a chip's memory left to the runtime and fragmentation
MOST_ROWS = 2**20  # of the search for the largest batch


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One run on one kind and number of chips."""

    chip: Chip
    chips: int
    mesh: tuple[int, int, int]
    accumulation_steps: int
    why: str
    memory: dict[str, float]
    flops: float
    seconds: timing.Seconds
    steps: int
    largest_batch: int
    share: float

    @property
    def memory_bytes(self) -> float:
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.memory_bytes <= room(self.chip)

    @property
    def run_hours(self) -> float:
        return self.steps * self.seconds.total / 3600


def room(chip: Chip) -> float:
    """Bytes of a chip that a step may take."""
    return (1 - RESERVED) * chip.memory_gb * 1e9


def predict(
    work: Work, chip: Chip, chips: int, share: float, mesh: tuple[int, int, int] | None = None
) -> Prediction:
    """The run on ``chips`` chips whose products reach ``share`` of the peak.

    Without ``mesh``, the first choice that fits of: plain data parallelism; parameters shared by
    more and more chips of a host, or of a TPU slice; smaller micro-batches with either; parameters
    shared between hosts. If nothing fits, the choice that needs least memory.

    Raises UserError if the batch cannot be cut for that many chips.
    """
    options = []
    for steps in accumulations(work, chips, mesh):
        for choice in [mesh] if mesh else meshes(chips, chip.per_host or chips):
            options.append((choice, steps))
    if not mesh:
        most = options[-1][1]
        options += [
            (choice, most) for choice in meshes(chips, chips) if (choice, most) not in options
        ]
    accelerator = chip.name != "cpu"
    sizes = [
        sum(memory(with_batch(work, accumulation=n), choice, accelerator).values())
        for choice, n in options
    ]
    fitting = [i for i, size in enumerate(sizes) if size <= room(chip)]
    best = fitting[0] if fitting else min(range(len(sizes)), key=sizes.__getitem__)
    chosen, steps = options[best]
    cut = with_batch(work, accumulation=steps)
    return Prediction(
        chip, chips, chosen, steps, reason(best, bool(fitting), mesh is not None, chosen, steps),
        memory(cut, chosen, accelerator), timing.flops(cut),
        timing.seconds(cut, chip, chosen, share), work.config.train.steps,
        largest_batch(work, chip, chosen), share,
    )  # fmt: skip


def reason(index: int, fits: bool, given: bool, mesh: tuple[int, int, int], steps: int) -> str:
    """Why this mesh."""
    if not fits:
        return "nothing tried fits; this needs least"
    if given:
        return "as given"
    if index == 0:
        return "everything fits on each chip, so only gradients travel"
    shared = f"parameters shared by {mesh[1]}" if mesh[1] > 1 else "parameters on every chip"
    return f"the first choice that fits: {shared}, micro-batches {steps}"


def meshes(chips: int, within: int) -> list[tuple[int, int, int]]:
    """(data, fsdp, 1) with less sharing first; fsdp a power of two of at most ``within`` chips."""
    widths = [2**n for n in range(chips.bit_length()) if chips % 2**n == 0]
    return [(chips // n, n, 1) for n in widths if n <= within]


def accumulations(work: Work, chips: int, mesh: tuple[int, int, int] | None) -> list[int]:
    """Numbers of micro-batches from the config's own on, doubling while each chip has a row."""
    groups = mesh[0] * mesh[1] if mesh else chips
    config = work.config
    settled = config_lib.MeshConfig(*mesh) if mesh else config_lib.MeshConfig(data=chips)
    config_lib.validate_devices(
        dataclasses.replace(config, mesh=settled), chips if not mesh else groups * mesh[2]
    )
    found = [config.optim.accumulation_steps]
    while config.train.batch_size % (2 * found[-1] * groups) == 0:
        found.append(2 * found[-1])
    return found


def with_batch(work: Work, batch: int = 0, accumulation: int = 1) -> Work:
    """The same with another batch or number of micro-batches."""
    change, config = dataclasses.replace, work.config
    config = change(
        config,
        train=change(config.train, batch_size=batch or config.train.batch_size),
        optim=change(config.optim, accumulation_steps=accumulation),
    )
    return change(work, config=config)


def largest_batch(work: Work, chip: Chip, mesh: tuple[int, int, int]) -> int:
    """Sequences per group of chips that fit without accumulation, times the groups; 0 if none."""
    groups = mesh[0] * mesh[1]

    def fits(rows: int) -> bool:
        used = memory(with_batch(work, rows * groups), mesh, chip.name != "cpu")
        return sum(used.values()) <= room(chip)

    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high) and high < MOST_ROWS:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * groups
