"""Repeat a training step that was not finite, and say where it began.

    flm reproduce runs/q/nonfinite/step_00000120.npz
    flm reproduce gs://BUCKET/RUN/nonfinite/step_00000120.npz

The file holds the batch, its step, the seed and the config of the run; parameters and optimizer
come from the newest checkpoint before that step (or from the beginning), and the steps between are
repeated. One process, any number of devices; the run itself is not touched. Exit code 0 if the
numbers are not finite again, 1 if they are finite.
"""

import dataclasses
import json
import posixpath

from flm_jax.cli.command import Command
from flm_jax.host import folders
from flm_jax.knobs import knob


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    file: str = knob(
        "",
        "what the run wrote about the step",
        word=True,
        needed="give one file, for example runs/q/nonfinite/step_00000120.npz",
    )
    workdir: str = knob("", "of the run, if the file lies elsewhere now")


def run(options: Options) -> int:
    from flm_jax import inference
    from flm_jax.checkpoint import fetched
    from flm_jax.training import reproduce

    if "://" in options.file:
        run = posixpath.dirname(posixpath.dirname(options.file))
        name = options.file.removeprefix(f"{run}/")
        path = fetched(run, name) / name
    else:
        path = folders.expanded(options.file)
    workdir = inference.place(options.workdir) if options.workdir else path.parent.parent
    result = reproduce.reproduce(path, workdir)
    print(json.dumps(result, indent=1))
    print("reproduced" if result["reproduced"] else "NOT reproduced: all numbers are finite here")
    return 0 if result["reproduced"] else 1


COMMAND = Command(__doc__, Options, run)
