"""Write one jump of a model as a file that runs without this library.

    flm export --checkpoint=runs/q_fmlm --format=onnx --output=exported
    flm export --checkpoint=runs/q --format=stablehlo --output=exported --batch=1 --length=64
    flm export --checkpoint=owt_flm.ckpt --format=onnx --output=exported

The output is a folder with the graph, the arrays that noise is made with, an example that draws
texts (sample.py), and a README. onnx needs the package onnx (pip install 'flm_jax[export]'). Batch
and length stay open unless they are given. Denoisers and flow maps have jumps, baselines do not.
"""

import dataclasses
import pathlib

from flm_jax.cli.command import Command
from flm_jax.knobs import knob
from flm_jax.options import Loading


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Loading):
    format: str = knob(
        "",
        "onnx, or stablehlo (for any JAX)",
        choices=("onnx", "stablehlo"),
        needed="--format is missing; give --format=onnx or --format=stablehlo",
    )
    output: str = knob(
        "", "folder to be made", needed="--output=FOLDER is missing; name a folder to be made"
    )
    batch: int | None = knob(None, "texts of a call of the graph; any by default", at_least=1)
    length: int | None = knob(None, "tokens of a text; any by default", at_least=3)


def run(options: Options) -> None:
    from flm_jax.host import files

    output = pathlib.Path(options.output).expanduser()
    files.check_new(output)

    from flm_jax import inference
    from flm_jax.export import folder

    folder.check(options.format)
    loading = options.loading()
    if inference.is_workdir(pathlib.Path(options.checkpoint).expanduser()):
        loading["length"] = None  # a workdir knows the one that it was trained with
    model = inference.load(**loading)
    sizes = options.batch, options.length
    folder.write(model, options.format, output, *sizes, weights=options.weights or "ema")
    print(f"wrote {output}: one jump of {model!r}\ndraw texts:  python {output}/sample.py 8 0")


COMMAND = Command(__doc__, Options, run)
