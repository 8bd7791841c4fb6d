"""Train models of known truth and table how much of what they write is right.

    flm proof --languages=addition3,sudoku4 --methods=flm,fmlm,any_order,mdlm

For every language and seed: a denoiser (flm), its flow maps (fmlm), a denoiser and a flow map that
were trained with given tokens (flm_given, any_order), and baselines: masked diffusion and, if asked
for, uniform-state diffusion and an autoregressive network. All have the same backbone, batches and,
both stages of a flow map together, training steps (configs/proof.py). Every run is an ordinary
training run in a folder of its own: what is finished is not trained again, what was interrupted
goes on. A table is the mean over seeds and half their range, by the number of network evaluations.

The languages are addition3 (three digits; a tenth of the operand pairs is never trained on),
brackets32 and large_grammar, each with its number of possible texts. city_pairs, addition and
brackets have so few that every network knows them by heart: they are smoke tests. sudoku4 are 4x4
puzzles of 7 clues, asked with solutions that were never trained on.

Every network writes by several samplers. Those of vectors have a second grid, whose steps become
shorter towards the end ("grid 4"), where texts are lost. Networks that take given tokens refine in
rounds, each of which commits the most probable tokens: at most 16 ("refined"), or one for every
evaluation. Masked diffusion shows its tokens in random order, the most confident positions first,
or the most confident draws. Where a language has a left side (123+456=), networks that can are also
asked held-out ones: "addition3, left side given". The last table of a task sets any_order beside
masked diffusion with four times the evaluations, by the best sampler of each.

Validity alone would praise a model that writes one valid text again and again, or only the easy
ones. So there are more tables. Where texts are few: total variation from the truth and the share of
its texts that occur. Where they are many: the distance of features whose law is known (operand
digits and carries, depth of nesting, numbers of words and the words), the share of different texts
among the valid ones, their mean log-likelihood under the truth, to be compared with that of
held-out data, and for addition3 the share that was never trained on; distinct-4 for all. Distances
have those of as many samples of the truth itself in brackets: few valid samples are far from it by
chance.
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
    num_samples: int = knob(1024, "texts, or held-out tasks, at every number of steps", at_least=1)


def run(options: Options) -> None:
    from flm_jax.lab import proof

    proof.prove(
        folders.local("--workdir", options.workdir),
        options.languages,
        options.methods,
        options.seeds,
        size=options.size,
        scale=options.scale,
        grid_power=options.grid_power,
        num_samples=options.num_samples,
    )


COMMAND = Command(__doc__, Options, run, needs_reader=False)
