"""Will it fit, and how long will it take, on chips that are not here.

    flm plan --config=configs/owt.py --chips=v5p-64
    flm plan --config=configs/lm1b.py:distill --chips=h100x8,h200x1 --share=0.5
    flm plan --config=configs/owt.py --chips=custom --number=4 --memory_gb=48 \
        --peak_tflops=180 --bandwidth_gbs=900 --link_gbs=32
    flm plan --validate

Predicts memory per chip, FLOPs and time of a step, the whole run, the mesh and the largest batch,
by the formulas of flm_jax/lab/plan/memory.py and timing.py, and says what it assumes. No device is
needed, and no checkpoint or data. --validate compiles training steps on this machine's CPU and
compares (15 minutes on two cores). With --json the last line printed is JSON.
"""

import dataclasses
import json
from typing import Any

from absl import flags

from flm_jax import config as config_lib
from flm_jax.cli import flags as command_line
from flm_jax.errors import UserError
from flm_jax.host import progress
from flm_jax.lab.benchmark.vocabulary import vocabulary_size
from flm_jax.lab.plan import chips as chips_lib

SHARE = 0.4

CONFIG = command_line.config_flag()
CHIPS = flags.DEFINE_list("chips", ["h100x8"], "v5p-64, v6e-8, h100x8, h200x1, cpu ... or custom")
FRACTION = flags.DEFINE_float("share", SHARE, "share of the peak that products reach", 0.01, 1.0)
VOCAB = flags.DEFINE_integer("vocab", 0, "vocabulary; 0 = that of the tokenizer", lower_bound=0)
MESH = flags.DEFINE_list("mesh", [], "data,fsdp,tensor to plan for; empty = choose")
JSON = flags.DEFINE_bool("json", False, "print the numbers as JSON in the last line")
VALIDATE = flags.DEFINE_bool("validate", False, "compare predictions with compiled steps here")
NUMBER = flags.DEFINE_integer("number", 1, "how many custom chips", lower_bound=1)
MEMORY = flags.DEFINE_float("memory_gb", 0.0, "memory of a custom chip, 1e9 bytes", lower_bound=0.0)
PEAK = flags.DEFINE_float("peak_tflops", 0.0, "its peak in the config's dtype", lower_bound=0.0)
EXACT = flags.DEFINE_float("exact_tflops", 0.0, "in full float32; 0 = peak / 8", lower_bound=0.0)
BANDWIDTH = flags.DEFINE_float("bandwidth_gbs", 0.0, "its memory bandwidth", lower_bound=0.0)
LINK = flags.DEFINE_float("link_gbs", 0.0, "its link to the others, one way", lower_bound=0.0)


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; options are written --name=value")
    _no_devices()
    if VALIDATE.value:
        return validate()
    from flm_jax.lab.plan import program
    from flm_jax.lab.plan.predict import predict
    from flm_jax.losses import LOSSES
    from flm_jax.samplers import SAMPLERS

    config = CONFIG.value
    wanted = [chips_of(text) for text in CHIPS.value]
    if not wanted:
        raise UserError("--chips is empty; write for example --chips=h100x8")
    meshes = [mesh_of(number) for _, number in wanted]
    size = vocabulary_size(config, VOCAB.value)
    if config.loss.name in LOSSES:  # shapes are enough: no checkpoint need exist
        loss = config_lib.build(LOSSES, config.loss.name, config.loss.options, "loss")
        teacher = "planned" if loss.needs.teacher else ""
        config = dataclasses.replace(config, init_from="", teacher=teacher)
    config_lib.validate(config, {"loss": LOSSES, "sampler": SAMPLERS})
    with progress.Waiting("tracing the training step"):
        work = program.work(config, size)
    found = [
        predict(work, chip, number, FRACTION.value, mesh)
        for (chip, number), mesh in zip(wanted, meshes, strict=True)
    ]
    if JSON.value:
        print(json.dumps([as_json(work, p) for p in found]))
    else:
        print("\n\n".join(report(work, p) for p in found))
    return 0


def _no_devices() -> None:
    """Tracing needs a backend for constants; accelerators may be in use or absent."""
    import jax

    jax.config.update("jax_platforms", "cpu")


def chips_of(text: str) -> tuple[chips_lib.Chip, int]:
    """What one word of --chips means; "custom" is described by further flags."""
    if text != "custom":
        return chips_lib.parse(text)
    given = {
        "memory_gb": MEMORY.value,
        "peak_tflops": PEAK.value,
        "bandwidth_gbs": BANDWIDTH.value,
    }
    if NUMBER.value > 1:
        given["link_gbs"] = LINK.value
    missing = [f"--{name}=" for name, value in given.items() if not value]
    if missing:
        raise UserError(f"--chips=custom must be described: {' '.join(missing)} (all above 0)")
    chip = chips_lib.Chip(
        "custom", MEMORY.value, PEAK.value, PEAK.value, EXACT.value or PEAK.value / 8,
        BANDWIDTH.value, LINK.value, LINK.value, 0, "as given",
    )  # fmt: skip
    return chip, NUMBER.value


def mesh_of(number: int) -> tuple[int, int, int] | None:
    """--mesh for that many chips."""
    if not MESH.value:
        return None
    try:
        data, fsdp, tensor = (int(word) for word in MESH.value)
    except ValueError:
        data = fsdp = tensor = 0
    if data * fsdp * tensor != number or min(data, fsdp, tensor) < 1:
        raise UserError(
            f"--mesh={','.join(MESH.value)} must be data,fsdp,tensor with a product of {number}, "
            f"the number of chips; for example --mesh={number},1,1"
        )
    return data, fsdp, tensor


def report(work: Any, p: Any) -> str:
    """One prediction for people."""
    config, seconds = work.config, p.seconds
    data, fsdp, tensor = p.mesh
    mesh = f"--config.mesh.data={data} --config.mesh.fsdp={fsdp} --config.mesh.tensor={tensor}"
    if p.accumulation_steps > 1:
        mesh += f" --config.optim.accumulation_steps={p.accumulation_steps}"
    here, there = p.memory_bytes, sum(other_space(work, p).values())
    space, other = ("projected", "one-hot") if work.projected else ("one-hot", "projected")
    lines = [
        f"{p.chips} x {p.chip.name} ({p.chip.source})",
        f"  step of        {config.loss.name}, {work.parameters / 1e6:.1f} M parameters, "
        f"V = {work.vocab_size}, batch {config.train.batch_size} x {config.data.length}, "
        f"{config.model.dtype}, {space} space",
        f"  mesh           {mesh}",
        f"                 {p.why}",
        f"  memory         {here / 1e9:.2f} of {p.chip.memory_gb:g} GB per chip: "
        + ("fits" if p.fits else "DOES NOT FIT")
        + f" (in the {other} space: {there / 1e9:.2f} GB)",
        *(f"    {value / 1e9:8.3f} GB  {name}" for name, value in p.memory.items() if value),
        f"  largest batch  {p.largest_batch // (data * fsdp)} sequences per chip"
        f" ({p.largest_batch} in all) without accumulation",
        f"  work           {p.flops / 1e12:.2f} TFLOP a step; {work.evaluations:g} network "
        "evaluations per token, of which one is differentiated",
        f"  step           {1e3 * seconds.total:.1f} ms: products {1e3 * seconds.products:.1f} | "
        f"memory traffic {1e3 * seconds.memory:.1f} | exact float32 products of the noise "
        f"{1e3 * seconds.noise:.1f} | links {1e3 * seconds.links:.1f}",
        f"  run            {p.steps:,} steps: {p.run_hours:,.1f} hours, "
        f"{p.run_hours * p.chips:,.0f} chip-hours, {work.tokens / seconds.total:,.0f} tokens/s",
        f"  assumed        products reach {100 * FRACTION.value:.0f} % of the peak (--share) and "
        "hide memory traffic; half of the communication",
        "                 hides too; data, evaluation and checkpoints cost nothing; a tenth of the "
        "memory stays free; teachers have",
        "                 the student's size; memory as XLA's programs for CPUs have it",
    ]
    return "\n".join(lines)


def other_space(work: Any, p: Any) -> dict[str, float]:
    """Memory of the same run in the other state space."""
    from flm_jax.lab.plan.memory import memory
    from flm_jax.lab.plan.predict import with_batch

    other = dataclasses.replace(
        with_batch(work, accumulation=p.accumulation_steps), projected=not work.projected
    )
    return memory(other, p.mesh, p.chip.name != "cpu")


def as_json(work: Any, p: Any) -> dict[str, Any]:
    """One prediction for programs."""
    return {
        "chip": p.chip.name, "chips": p.chips, "mesh": p.mesh,
        "accumulation_steps": p.accumulation_steps, "why": p.why, "fits": p.fits,
        "memory_bytes": p.memory_bytes, "memory": p.memory,
        "memory_bytes_other_space": sum(other_space(work, p).values()),
        "parameters": work.parameters, "flops_per_step": p.flops,
        "seconds_per_step": p.seconds.total, "seconds": dataclasses.asdict(p.seconds),
        "tokens_per_second": work.tokens / p.seconds.total, "steps": p.steps,
        "run_hours": p.run_hours, "chip_hours": p.run_hours * p.chips,
        "largest_batch": p.largest_batch, "share": FRACTION.value,
    }  # fmt: skip


def validate() -> int:
    """Prints tables of predicted and real memory and FLOPs."""
    from flm_jax.lab.plan import validate as lib

    print("| shape | predicted | compiled step | ratio |\n|---|---:|---:|---:|")
    for row in lib.rows():
        kind = "" if row.name in lib.FITTED else " (held out)"
        megabytes = f"{row.predicted / 1e6:.0f} MB | {row.measured / 1e6:.0f} MB"
        print(f"| {row.name}{kind} | {megabytes} | {row.ratio:.2f} |", flush=True)
    print("\n| products of a step | predicted | counted | ratio |\n|---|---:|---:|---:|")
    for loss in ("flow_matching", "psd", "lsd", "esd", "residual", "masked_diffusion"):
        predicted, real = lib.compare_flops(loss)
        giga = f"{predicted / 1e9:.2f} G | {real / 1e9:.2f} G"
        print(f"| {loss} | {giga} | {predicted / real:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    command_line.run_main(main)
