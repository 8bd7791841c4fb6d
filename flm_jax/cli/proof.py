"""Train models of synthetic languages and table their exact validity.

    flm proof --languages=addition3 --methods=flm,fmlm --seeds=1,2,3

For every language and seed: a denoiser (FLM), its flow maps (FMLM), and baselines (masked diffusion
and, if asked for, uniform-state diffusion and an autoregressive network) with the same backbone and
as many training steps as both together, all from configs/proof.py. Every
run is an ordinary training run in a folder of its own: what is finished is not trained again, what
was interrupted goes on. The table is the mean over seeds and half their range.

The languages are addition3 (three digits; a tenth of the operand pairs is never trained on),
brackets32 and large_grammar, each with its number of possible texts in the table. city_pairs,
addition and brackets have so few that every network knows them by heart: they are smoke tests.

Samplers of vectors are run on two grids: steps even in tau, and the same numbers of steps that
become shorter towards the end (``grid_power``; rows "fmlm, grid 4, 8 steps"), where texts are lost.

Validity alone would praise a model that writes one valid text again and again, or only the easy
ones. So there are more tables. Where texts are few: total variation from the truth and the share of
its texts that occur. Where they are many: the distance of features whose law is known (operand
digits and carries, depth of nesting, numbers of words and the words), the share of different texts
among the valid ones, their mean log-likelihood under the truth, to be compared with that of
held-out data, and for addition3 the share that was never trained on. Distances have those of as
many samples of the truth itself in brackets: few valid samples are far from it by chance.
"""

import dataclasses
import math

from flm_jax.cli.command import Command
from flm_jax.host import folders
from flm_jax.knobs import knob


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    workdir: str = knob("runs/proof", "folder of all runs")
    languages: tuple[str, ...] = knob(
        ("addition3", "brackets32", "large_grammar"), "rows of configs/proof.py LANGUAGES"
    )
    methods: tuple[str, ...] = knob(
        ("flm", "fmlm", "fmlm_ema", "mdlm"),
        "rows of configs/proof.py METHODS; those they start from are added",
    )
    seeds: tuple[int, ...] = knob((1, 2, 3), "seeds of training", at_least=0, below=2**32)
    size: str = knob("default", "row of configs/proof.py SIZES, in a folder of its own")
    scale: float = knob(1.0, "factor on the number of training steps", above=0, below=math.inf)
    grid_power: float = knob(
        4.0,
        "sampler.grid_power of the second grid of every model; 1 = no second one",
        above=0,
        below=math.inf,
    )


def run(options: Options) -> None:
    from flm_jax.lab import proof

    proof.prove(
        folders.expanded(options.workdir),
        options.languages,
        options.methods,
        options.seeds,
        size=options.size,
        scale=options.scale,
        grid_power=options.grid_power,
    )


COMMAND = Command(__doc__, Options, run, needs_reader=False)
