"""How far bfloat16 is from float32 on recorded networks, as a table.

    flm parity precision DIRECTORY

The recorded networks, noise and times run twice, with model.dtype float32 and bfloat16: losses,
gradients, states of the samplers and the tokens at the end.
"""

import dataclasses

from flm_jax.cli.command import Command
from flm_jax.knobs import knob


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    directory: str = knob(
        "",
        "a recorded set: manifest.json and the files it lists",
        word=True,
        needed="give the folder of a recorded set, the one with manifest.json",
    )


def run(options: Options) -> None:
    from flm_jax.lab.parity import precision

    for line in precision.table(options.directory):
        print(line, flush=True)


COMMAND = Command(__doc__, Options, run)
