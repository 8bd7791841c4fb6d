"""Write texts with a trained model.

    flm generate --checkpoint=runs/q --steps=1,8,32 --num_samples=8 --seed=0
    flm generate --checkpoint=runs/q --steps=8 --output=samples.jsonl
    flm generate --checkpoint=owt_flm.ckpt --steps=1024 --num_samples=1

What is not given comes from the config the model was trained with. The vocabulary files of an
official checkpoint are looked for in $FLM_JAX_TOKENIZERS/NAME and in the Hugging Face cache, or
given as --tokenizer=FOLDER.
"""

import dataclasses
import json
import pathlib
from typing import TYPE_CHECKING

from flm_jax.cli.command import Command
from flm_jax.knobs import knob
from flm_jax.options import Drawing

if TYPE_CHECKING:
    from flm_jax.inference import Samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Drawing):
    output: str | None = knob(None, "write samples as JSON lines to this file")


def run(options: Options) -> None:
    from flm_jax.host import compiled, files, memory

    output = files.output("--output", options.output) if options.output else None
    memory.keep_small()
    with compiled.kept_for_user():
        _write(options, output)


def _write(options: Options, output: pathlib.Path | None) -> None:
    from flm_jax import inference
    from flm_jax.host import files

    model = inference.load(**options.loading())
    counts = options.steps or model.config.sampler.steps
    drawn = (model.generate(steps=steps, **options.drawing()) for steps in counts)
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


COMMAND = Command(__doc__, Options, run)
