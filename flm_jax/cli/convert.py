"""Convert official PyTorch checkpoints to a workdir of ours, or back.

    flm convert lm1b_flm.ckpt runs/lm1b            # official -> workdir
    flm convert FOLDER runs/owt --tokenizer=gpt2   # config.json + model.safetensors
    flm convert runs/lm1b export                   # workdir -> model.safetensors

SOURCE decides the direction. A workdir made so serves generate, evaluate and --config.init_from. A
.ckpt gives both the raw weights and the EMA; --weights says which EMA (ema:0.999), or that
the raw weights are to stand for it (raw). Nothing inside a file is ever executed, and DESTINATION
appears whole or not at all.
"""

import dataclasses

from flm_jax.cli.command import Command
from flm_jax.knobs import knob
from flm_jax.options import Reading

_BOTH = "give SOURCE and DESTINATION; flm convert --help has examples"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Reading):
    source: str = knob("", "official checkpoint, or workdir of a run", word=True, needed=_BOTH)
    destination: str = knob("", "what is made: a folder", word=True, needed=_BOTH)


def run(options: Options) -> None:
    from flm_jax.inference.conversion import convert

    convert(options.source, options.destination, options)


COMMAND = Command(__doc__, Options, run)
