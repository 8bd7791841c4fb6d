"""Predicted against real: memory and operations of the compiled training step, on this CPU.

XLA's own account (arguments, results that do not take the place of arguments, temporaries) of the
step that training runs, against the formulas of `memory` for one CPU. The factors there were chosen
on the shapes of FITTED; those of HELD_OUT were only looked at.

Operations are compared with those of the traced program (`count`).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from flm_jax import config as config_lib
from flm_jax.host import compiled, numerics
from flm_jax.lab.plan import program, timing
from flm_jax.lab.plan.memory import memory
from flm_jax.losses import LOSSES
from flm_jax.training import products

Shape = dict[str, Any]  # what differs from BASE
BASE = dict(width=128, depth=4, heads=4, batch=32, length=128, vocab=8192)
LONG = dict(width=192, heads=6, depth=2, batch=2, length=1024, vocab=30522)
FITTED: dict[str, Shape] = {
    "FLM, small": dict(batch=16, length=64),
    "FLM, one-hot": dict(batch=16, length=64, space="onehot"),
    "FLM, L = 512": dict(batch=8, length=512, attention="einsum"),
    "FLM, 12 layers": dict(depth=12, vocab=4096),
    "FLM, 12 layers, no remat": dict(depth=12, vocab=4096, remat="none"),
    "FLM, V = 50258": dict(depth=2, vocab=50258),
    "FLM, configs/bench_cpu.py": dict(width=256, depth=6, vocab=30522),
    "PSD": dict(vocab=16384, loss="psd"),
    "PSD, one-hot": dict(batch=16, length=64, loss="psd", space="onehot"),
    "LSD": dict(batch=16, vocab=12000, loss="lsd"),
    "LSD, L = 64": dict(batch=64, length=64, vocab=4096, loss="lsd"),
}
HELD_OUT: dict[str, Shape] = {
    "FLM, B = 128": dict(batch=128, length=32, depth=3, vocab=12000),
    "FLM, L = 1024": dict(LONG, attention="einsum"),
    "FLM, L = 1024, blocks of queries": LONG,
    "FLM, L = 512, blocks, no remat": dict(batch=8, length=512, remat="none"),
    "FLM, 4 micro-batches": dict(batch=64, steps=4, vocab=16384),
    "FLM, one-hot, V = 30522": dict(width=256, depth=3, batch=8, vocab=30522, space="onehot"),
    "PSD, V = 30522": dict(width=192, heads=6, depth=6, batch=16, vocab=30522, loss="psd"),
    "LSD, L = 256": dict(LONG, batch=8, length=256, vocab=20000, loss="lsd"),
    "ESD": dict(width=192, heads=6, depth=3, batch=16, vocab=30522, loss="esd"),
}
SHAPES = FITTED | HELD_OUT


def config_of(shape: Shape) -> config_lib.Config:
    """A config with the values of one shape; see BASE for the rest."""
    shape = BASE | shape
    name, space = shape.get("loss", "flow_matching"), shape.get("space", "projected")
    chunk = shape["batch"] * shape["length"] if space == "onehot" else 0  # the official cost
    return config_lib.Config(
        space=space,
        teacher="planned" if LOSSES[name]().needs.teacher else "",
        data=config_lib.DataConfig(name="shape", length=shape["length"]),
        tokenizer=config_lib.TokenizerConfig(name="shape"),
        model=config_lib.ModelConfig(
            **{k: shape[k] for k in ("width", "depth", "heads")},
            dropout=0.0,
            head_chunk=chunk,
            remat=shape.get("remat", "full"),
            attention=shape.get("attention", "auto"),
            two_times=LOSSES[name]().needs.two_times,
        ),
        loss=config_lib.LossConfig(name=name),
        optim=config_lib.OptimConfig(accumulation_steps=shape.get("steps", 1)),
        train=config_lib.TrainConfig(batch_size=shape["batch"]),
    )


class Row(NamedTuple):
    """Bytes of one shape by formula and by XLA; XLA's temporaries alone."""

    name: str
    predicted: float
    measured: float
    parts: dict[str, float]

    @property
    def ratio(self) -> float:
        return self.predicted / self.measured


def compare(name: str, shape: Shape) -> Row:
    """One shape, compiled."""
    config, vocab_size = config_of(shape), (BASE | shape)["vocab"]
    parts = memory(program.work(config, vocab_size), (1, 1, 1), accelerator=False)
    return Row(name, sum(parts.values()), measured(config, vocab_size), parts)


@numerics.pinned()
def measured(config: config_lib.Config, vocab_size: int) -> int:
    """Bytes that the compiled training step holds on one device."""
    used = compiled.needed_bytes(program.build(config, vocab_size).lowered().compile())
    assert used is not None  # XLA has an account of every program for a CPU
    return used


@numerics.pinned()
def compare_flops(loss: str, shape: Shape | None = None) -> tuple[float, float]:
    """FLOPs of a step by formula, noise included, and counted in the traced program."""
    shape = BASE | {"loss": loss} | (shape or {})
    config = config_of(shape)
    work = program.work(config, shape["vocab"])
    predicted = timing.flops(work) + timing.noise_flops(work, (1, 1, 1))
    built = program.build(config, shape["vocab"])
    return predicted, products.products(built.step, built.arguments)


def rows() -> Iterator[Row]:
    """All shapes, one at a time."""
    for name, shape in SHAPES.items():
        yield compare(name, shape)


def report() -> Iterator[str]:
    """Lines of two tables: predicted and real memory, predicted and counted products."""
    yield "| shape | predicted | compiled step | ratio |\n|---|---:|---:|---:|"
    for row in rows():
        kind = "" if row.name in FITTED else " (held out)"
        megabytes = f"{row.predicted / 1e6:.0f} MB | {row.measured / 1e6:.0f} MB"
        yield f"| {row.name}{kind} | {megabytes} | {row.ratio:.2f} |"
    yield "\n| products of a step | predicted | counted | ratio |\n|---|---:|---:|---:|"
    for loss in ("flow_matching", "psd", "lsd", "esd", "residual", "masked_diffusion"):
        predicted, real = compare_flops(loss)
        giga = f"{predicted / 1e9:.2f} G | {real / 1e9:.2f} G"
        yield f"| {loss} | {giga} | {predicted / real:.2f} |"
