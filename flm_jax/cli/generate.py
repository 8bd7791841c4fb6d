"""Write texts with a trained model.

    flm generate --checkpoint=runs/q --steps=1,8,32 --num_samples=8 --seed=0
    flm generate --checkpoint=runs/q --steps=8 --output=samples.jsonl
    flm generate --checkpoint=owt_flm.ckpt --steps=1024 --num_samples=1
    flm generate --checkpoint=runs/q --prompt="Once upon a time" --steps=32
    flm generate --checkpoint=runs/q --infill="Lily found a [MASK:2] and was happy" --steps=32
    flm generate --checkpoint=runs/q --infill="Lily found a [MASK] and was happy" --span=free
    flm generate --checkpoint=runs/q --sampler=refinement --rounds=8 --steps=32
    flm generate --checkpoint=runs/q --guide=runs/q@1000 --guidance=2 --steps=32

What is not given comes from the config the model was trained with. The vocabulary files of an
official checkpoint are looked for in $FLM_JAX_TOKENIZERS/NAME and in the Hugging Face cache, or
given as --tokenizer=FOLDER. A line of --prompts=FILE.jsonl is {"prompt": TEXT} or {"infill": TEXT}.
"""

import dataclasses
import json
import pathlib
from typing import TYPE_CHECKING, Any

from flm_jax.cli.command import Command
from flm_jax.errors import UserError
from flm_jax.knobs import knob
from flm_jax.options import Drawing

if TYPE_CHECKING:
    from flm_jax.inference import Samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Drawing):
    prompt: str | None = knob(None, "text that every sample begins with")
    infill: str | None = knob(
        None, "text with [MASK] for every token to be written, or [MASK:5] for five"
    )
    prompts: str | None = knob(
        None, 'JSON lines {"prompt": TEXT} or {"infill": TEXT}; num_samples of each'
    )
    span: str | None = knob(
        None,
        "free = the [MASK] of an infill text stands for an unknown number of tokens",
        choices=("free",),
    )
    max_span: int | None = knob(None, "... of at most so many (default 8)", at_least=2)
    output: str | None = knob(None, "write samples as JSON lines to this file")


def run(options: Options) -> None:
    from flm_jax.host import compiled, files, memory

    output = files.output("--output", options.output) if options.output else None
    asked = given(options)
    options.options_of_sampler()  # what is wrong with them is said before JAX is loaded
    memory.keep_small()
    with compiled.kept_for_user():
        _write(options, output, asked)


def _write(options: Options, output: pathlib.Path | None, asked: dict[str, Any]) -> None:
    from flm_jax import inference
    from flm_jax.host import files

    model = inference.load(**options.loading())
    counts = options.steps or model.config.sampler.steps
    drawn = (model.generate(steps=steps, **options.drawing(), **asked) for steps in counts)
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


def given(options: Options) -> dict[str, Any]:
    """What is given of the texts, as `FlowModel.generate` takes it.

    UserError for more than one, and for a span without a text to fill in.
    """
    named = {name: vars(options)[name] for name in ("prompt", "infill", "prompts")}
    named = {name: value for name, value in named.items() if value is not None}
    if len(named) > 1:
        words = " and ".join(f"--{name}" for name in named)
        raise UserError(f"{words} are given, but only one can be; omit the others")
    path = named.pop("prompts", None)
    found: dict[str, Any] = {**named} if path is None else from_file(path)
    longest = {} if options.max_span is None else {"max_span": options.max_span}
    if options.span is None:
        if longest:
            raise UserError(f"--max_span={options.max_span} is for --span=free; give both")
        return found
    if "infill" not in found:
        raise UserError(f"--span={options.span} is for a text to fill in; give it as --infill")
    return found | {"span": options.span} | longest


def from_file(path: str) -> dict[str, str | list[str]]:
    """The texts of a file of JSON lines, all of one kind; UserError for anything else."""
    example = '{"prompt": "Once upon a time"}'
    try:
        lines = pathlib.Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts={path} cannot be read ({error}); give a text file") from error
    found: dict[str, list[str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        kinds = [k for k in ("prompt", "infill") if isinstance(row, dict) and k in row]
        if not isinstance(row, dict) or len(kinds) != 1 or not isinstance(row[kinds[0]], str):
            raise UserError(f"line {number} of {path} is not like {example}; correct it")
        found.setdefault(kinds[0], []).append(row[kinds[0]])
    if len(found) != 1:
        what = "holds no line" if not found else "mixes prompts and infills"
        raise UserError(f"{path} {what}; write lines like {example}")
    return {**found}


def show(samples: "Samples") -> None:
    """Prints texts, one a line, at once: a reader that has gone ends the command here."""
    mean = ""
    if samples.evaluations != samples.steps:
        mean = f", {samples.evaluations:.1f} evaluations on average"
    if samples.gradients:
        mean += f" ({samples.gradients:.1f} of them with a backward pass)"
    plural = "s" * (samples.steps > 1)
    print(f"--- {samples.steps} step{plural}{mean}, {samples.seconds:.2f} s")
    print("\n".join(" | ".join(text.splitlines()) for text in samples.texts), flush=True)
    if samples.lengths is not None:
        print(samples.lengths, flush=True)


COMMAND = Command(__doc__, Options, run)
