"""Write texts with a trained model.

    flm generate --checkpoint=runs/q --steps=1,8,32 --num_samples=8 --seed=0
    flm generate --checkpoint=runs/q --steps=8 --output=samples.jsonl
    flm generate --checkpoint=owt_flm.ckpt --steps=1024 --num_samples=1

What is not given comes from the config the model was trained with. The vocabulary files of an
official checkpoint are looked for in $FLM_JAX_TOKENIZERS/NAME and in the Hugging Face cache, or
given as --tokenizer=FOLDER.
"""

import json
import os
import pathlib
from typing import TYPE_CHECKING

from absl import flags

from flm_jax.cli import flags as command_line
from flm_jax.errors import UserError

if TYPE_CHECKING:
    from flm_jax.inference import Samples

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "workdir of a training run, or official .ckpt, .safetensors or folder"
)
TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "of an official checkpoint: gpt2, bert-base-uncased, or a tokenizer's folder"
)
LENGTH = flags.DEFINE_integer("length", None, "tokens per text of an official checkpoint")
HEADS = flags.DEFINE_integer("heads", None, "attention heads of an official checkpoint")
LOGIT_CAP = flags.DEFINE_float(
    "logit_cap",
    None,
    "of an official checkpoint; 0 = none, as in the code of February 2026 (default 30)",
)
TEACHER = flags.DEFINE_string(
    "teacher", None, "where the denoiser of a correction (loss residual) is now, if it was moved"
)
STEPS = flags.DEFINE_string("steps", None, "numbers of network evaluations, for example 1,8,32")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 8, "texts per number of steps")
SEED = flags.DEFINE_integer("seed", 0, "root of the noise; sample i is the same in any batch")
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "texts written at one time")
SAMPLER = flags.DEFINE_string("sampler", "", "sampler by name; '' = that of the config")
command_line.sampling_flags()
WEIGHTS = flags.DEFINE_string(
    "weights", None, "ema (moving average, the default), raw, or ema:DECAY of an official .ckpt"
)
OUTPUT = flags.DEFINE_string("output", None, "write samples as JSON lines to this file")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; options are written --name=value")
    if not CHECKPOINT.value:
        raise UserError("--checkpoint=PATH is missing; give a run's --workdir or a .ckpt file")
    counts = None if STEPS.value is None else parse_steps(STEPS.value)
    output = pathlib.Path(OUTPUT.value).expanduser() if OUTPUT.value else None
    # Not pathlib's is_dir, which raises an error for a name that is too long.
    if output is not None and not os.path.isdir(output.absolute().parent):
        raise UserError(f"--output={output}: there is no folder {output.parent}; make it first")
    if output is not None and os.path.isdir(output):
        raise UserError(f"--output={output} is a folder; give the name of a file")
    from flm_jax import inference
    from flm_jax.host import files, memory

    if output is not None:
        files.check_writable(output)
    memory.keep_small()
    model = inference.load(
        CHECKPOINT.value,
        WEIGHTS.value,
        tokenizer=TOKENIZER.value,
        length=LENGTH.value,
        heads=HEADS.value,
        logit_cap=LOGIT_CAP.value,
        teacher=TEACHER.value,
    )

    def draw(steps: int) -> "Samples":
        return model.generate(
            NUM_SAMPLES.value,
            steps,
            SEED.value,
            batch_size=BATCH_SIZE.value,
            sampler=SAMPLER.value,
            **command_line.given_sampling(),
        )

    drawn = (draw(steps) for steps in counts or model.config.sampler.steps)
    if output is None:
        for samples in drawn:
            show(samples)
        return
    done = []
    try:  # saved before it is shown, and shown if it cannot be saved
        for samples in drawn:
            done.append(samples)
        rows = [row for samples in done for row in samples.rows()]
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        files.write_atomically(output, "\n".join(lines) + "\n")
    finally:
        for samples in done:
            show(samples)
    print(f"wrote {len(rows)} samples to {output}")


def show(samples: "Samples") -> None:
    """Prints texts, one a line, at once: a reader that has gone ends the command here."""
    mean = ""
    if samples.evaluations < samples.steps:
        mean = f", {samples.evaluations:.1f} evaluations on average"
    plural = "s" * (samples.steps > 1)
    print(f"--- {samples.steps} step{plural}{mean}, {samples.seconds:.2f} s")
    print("\n".join(" | ".join(text.splitlines()) for text in samples.texts), flush=True)


def parse_steps(text: str) -> tuple[int, ...]:
    """ "1,8,32" -> (1, 8, 32); UserError for anything else."""
    try:
        counts = tuple(int(word) for word in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise UserError(f"--steps={text} is not a list of positive whole numbers such as 1,8,32")
    return counts


if __name__ == "__main__":
    command_line.run_main(main)
