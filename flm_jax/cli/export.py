"""Write a model for others: as ONNX, StableHLO, or a folder for a model hub.

    flm export --checkpoint=runs/q_fmlm --format=onnx --output=exported
    flm export --checkpoint=runs/q --format=stablehlo --output=exported --batch=1 --length=64
    flm export --checkpoint=owt_flm.ckpt --format=onnx --output=exported
    flm export --checkpoint=runs/q --format=hub --output=released

onnx and stablehlo: the output is a folder with the graph, the arrays that noise is made with, an
example that draws texts (sample.py), and a README; pip install 'flm_jax[export]' brings what writes
them. Batch and length stay open unless they are given. Denoisers and flow maps have jumps,
baselines do not.

hub: weights (safetensors; --dtype=float16 makes them half as large), config, tokenizer and a model
card, whose licence is yours to fill in.
It is read by flm_jax.load("hf://USER/REPO") and --checkpoint=hf://USER/REPO when it was uploaded,
which flm push does.
"""

import dataclasses
import pathlib

from flm_jax.cli.command import Command
from flm_jax.errors import UserError
from flm_jax.knobs import knob
from flm_jax.options import Loading


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Loading):
    format: str = knob(
        "",
        "onnx, stablehlo (for any JAX), or hub (a folder for a model hub)",
        choices=("onnx", "stablehlo", "hub"),
        needed="--format is missing; give --format=onnx, stablehlo or hub",
    )
    output: str = knob(
        "", "folder to be made", needed="--output=FOLDER is missing; name a folder to be made"
    )
    batch: int | None = knob(None, "texts of a call of the graph; any by default", at_least=1)
    length: int | None = knob(None, "tokens of a text; any by default", at_least=3)
    dtype: str = knob(
        "float32",
        "of the weights of --format=hub (float16 = half the size, values rounded to 11 bits)",
        choices=("float32", "float16"),
    )


def run(options: Options) -> None:
    from flm_jax.host import files

    output = pathlib.Path(options.output).expanduser()
    files.check_new(output)

    from flm_jax import inference
    from flm_jax.export import folder, hub
    from flm_jax.interop import release

    folder.check(options.format)
    loading, source = options.loading(), inference.place(options.checkpoint)
    is_workdir = inference.is_workdir(source)
    knows = is_workdir or release.is_release(source)
    if knows:
        loading["length"] = None  # the one that it was trained with
    sizes = {"batch": options.batch, "length": options.length}
    given = [name for name, size in sizes.items() if size is not None]
    if options.format == hub.HUB and given and (knows or given != ["length"]):
        raise UserError(f"--{given[0]} is for graphs; --format={hub.HUB} has all sizes, so omit it")
    if options.format != hub.HUB and options.dtype != "float32":
        raise UserError(
            f"--dtype={options.dtype} is for --format={hub.HUB}; a graph has float32, so omit it"
        )
    loading["path"] = source
    model, weights = inference.load(**loading), options.weights or "ema"
    if options.format == hub.HUB:
        hub.write(model, output, weights, source if is_workdir else None, options.dtype)
        print(
            f"wrote {output}: {model!r}\n"
            f"fill in the licence in {output}/README.md, then upload:  "
            f"flm push --folder={output} --repo=hf://USER/REPO"
        )
        return
    folder.write(model, options.format, output, **sizes, weights=weights)
    print(f"wrote {output}: one jump of {model!r}\ndraw texts:  python {output}/sample.py 8 0")


COMMAND = Command(__doc__, Options, run)
