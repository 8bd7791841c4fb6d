r"""Will it fit, and how long will it take, on chips that are not here.

    flm plan --config=configs/owt.py --chips=v5p-64
    flm plan --config=configs/lm1b.py:distill --chips=h100x8,h200x1 --share=0.5
    flm plan --config=configs/owt.py --chips=custom --number=4 --memory_gb=48 \
        --peak_tflops=180 --bandwidth_gbs=900 --link_gbs=32
    flm plan --config=configs/owt.py --chips=v5e-8,h200x1 --compile
    flm plan --config=configs/owt.py:distill --chips=v5e-8 --compile --program=sampler
    flm plan --validate

Predicts memory per chip, FLOPs and time of a step, the whole run, the mesh and the largest batch,
by the formulas of flm_jax/lab/plan/memory.py and timing.py, and says what it assumes. No device is
needed, and no checkpoint or data.

--compile hands the step to the real compiler of these chips (a minute or more a program) and says
what that knows: memory to the byte, collectives with their bytes, arrays of the vocabulary's size,
kernels. It is in the extras [tpu] and [cuda]; no chip is needed. --largest asks it for the largest
batch, too, by compiling a few more; --program=sampler compiles what writes sampler.batch_size texts
instead. --validate compiles training steps on this machine's CPU and
compares (15 minutes on two cores). With --json the last line printed is JSON.
"""

import dataclasses
import json
import math
from typing import TYPE_CHECKING

from flm_jax.cli.command import Command
from flm_jax.cli.options import Configured
from flm_jax.errors import UserError
from flm_jax.knobs import knob

if TYPE_CHECKING:
    from flm_jax.lab.plan.chips import Chip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Configured):
    chips: tuple[str, ...] = knob(
        ("h100x8",), "for example v5p-64, v6e-8, h100x8, h200x1, or custom; known", nonempty=True
    )
    share: float = knob(0.4, "share of the peak that products reach", at_least=0.01, at_most=1.0)
    vocab: int = knob(0, "vocabulary; 0 = that of the tokenizer", at_least=0)
    mesh: tuple[int, ...] = knob((), "data,fsdp,tensor to plan for; empty = choose", at_least=1)
    compile: bool = knob(False, "ask the compiler of these chips, too")
    program: str = knob(
        "train", "what is compiled: the training step, or sampling", choices=("train", "sampler")
    )
    sampling_steps: tuple[int, ...] = knob(
        (), "of --program=sampler (default: the config's sampler.steps)", at_least=1
    )
    largest: bool = knob(False, "with --compile: find the largest batch that fits")
    json: bool = knob(False, "print the numbers as JSON in the last line")
    validate: bool = knob(False, "compare predictions with compiled steps here")
    number: int = knob(1, "how many custom chips", at_least=1)
    memory_gb: float = knob(0.0, "memory of a custom chip, 1e9 bytes", at_least=0.0)
    peak_tflops: float = knob(0.0, "its peak in the config's dtype", at_least=0.0)
    exact_tflops: float = knob(0.0, "in full float32; 0 = peak / 8", at_least=0.0)
    bandwidth_gbs: float = knob(0.0, "its memory bandwidth", at_least=0.0)
    link_gbs: float = knob(0.0, "its link to the others, one way", at_least=0.0)


def run(options: Options) -> None:
    import jax

    # Tracing needs a backend for constants; accelerators may be in use or absent.
    jax.config.update("jax_platforms", "cpu")
    from flm_jax.host import progress
    from flm_jax.lab.plan import chips, compiled, predict, program, report, topology, validate

    if options.largest and not options.compile:
        raise UserError("--largest is found by compiling; give --compile, too")
    sampled = options.program == "sampler"
    if sampled and not options.compile:
        raise UserError("--program=sampler is only compiled, not estimated; give --compile, too")
    if sampled and options.largest:
        raise UserError("--largest is the batch of training; omit it, or --program=sampler")
    if options.sampling_steps and not sampled:
        raise UserError("--sampling_steps are those of --program=sampler; give it, too")
    if options.validate:
        for line in validate.report():
            print(line, flush=True)
        return
    config = options.config.value
    wanted = [_custom(options) if text == "custom" else chips.parse(text) for text in options.chips]
    meshes = [_mesh(options.mesh, number) for _, number in wanted]
    if options.compile:
        for chip, number in wanted:  # what is missing is said before anything is traced
            topology.devices(chip, number)
    with progress.Waiting("tracing the training step"):
        work = program.of_config(config, options.vocab)
    found = [
        predict.predict(work, chip, number, options.share, mesh)
        for (chip, number), mesh in zip(wanted, meshes, strict=True)
    ]
    rows = []
    for p in found:
        row = report.as_json(work, p)
        if not options.json and not sampled:
            print(report.report(work, p), flush=True)
        if sampled:
            row["compiled"] = []
            for steps in options.sampling_steps or config.sampler.steps:
                known = compiled.sampler(work, p.chip, p.mesh, steps)
                row["compiled"].append(compiled.as_json(known))
                if not options.json:
                    print(compiled.report(known), flush=True)
        elif options.compile:
            cut = predict.with_batch(work, accumulation=p.accumulation_steps)
            known = compiled.training_step(cut, p.chip, p.mesh)
            row["compiled"] = compiled.as_json(known)
            if not options.json:
                print(compiled.report(known), flush=True)
            if options.largest:
                batch = row["compiled"]["largest_batch"] = compiled.largest_batch(
                    work, p.chip, p.mesh
                )
                if not options.json:
                    print(f"  largest batch  {batch} without accumulation, by the compiler")
        if not options.json:
            print()
        rows.append(row)
    if options.json:
        print(json.dumps(rows))


def _mesh(given: tuple[int, ...], number: int) -> tuple[int, int, int] | None:
    """--mesh for that many chips; None to choose."""
    if not given:
        return None
    if len(given) != 3 or math.prod(given) != number:
        raise UserError(
            f"--mesh={','.join(map(str, given))} must be data,fsdp,tensor with a product of "
            f"{number}, the number of chips; for example --mesh={number},1,1"
        )
    data, fsdp, tensor = given
    return data, fsdp, tensor


def _custom(options: Options) -> tuple["Chip", int]:
    """The chip that the options describe, and how many."""
    from flm_jax.lab.plan.chips import Chip

    needed = ["memory_gb", "peak_tflops", "bandwidth_gbs", *["link_gbs"] * (options.number > 1)]
    missing = [f"--{name}=" for name in needed if not vars(options)[name]]
    if missing:
        raise UserError(f"--chips=custom must be described: {' '.join(missing)} (all above 0)")
    peak = options.peak_tflops
    chip = Chip(
        "custom", options.memory_gb, peak, peak, options.exact_tflops or peak / 8,
        options.bandwidth_gbs, options.link_gbs, options.link_gbs, 0, "as given",
    )  # fmt: skip
    return chip, options.number


COMMAND = Command(__doc__, Options, run)
