"""A prediction in words, and as numbers for programs."""

import dataclasses
from typing import Any

from flm_jax.lab.plan.memory import memory
from flm_jax.lab.plan.predict import Prediction, with_batch
from flm_jax.lab.plan.program import Work


def report(work: Work, p: Prediction) -> str:
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
        f"  assumed        products reach {100 * p.share:.0f} % of the peak (--share) and "
        "hide memory traffic; half of the communication",
        "                 hides too; data, evaluation and checkpoints cost nothing; a tenth of the "
        "memory stays free; teachers have",
        "                 the student's size; memory as XLA's programs for CPUs have it",
    ]
    return "\n".join(lines)


def other_space(work: Work, p: Prediction) -> dict[str, float]:
    """Memory of the same run in the other state space."""
    other = dataclasses.replace(
        with_batch(work, accumulation=p.accumulation_steps), projected=not work.projected
    )
    return memory(other, p.mesh, p.chip.name != "cpu")


def as_json(work: Work, p: Prediction) -> dict[str, Any]:
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
        "largest_batch": p.largest_batch, "share": p.share,
    }  # fmt: skip
