r"""Sample at several numbers of steps and compute every metric of the texts.

    flm evaluate --checkpoint=runs/q --steps=1,8,32 --num_samples=256
    flm evaluate --checkpoint=owt_flm.ckpt --steps=1024 --num_samples=1024 \
        --scorer=models/gpt2-large --output=results.json

Texts are written to files first (--samples, or beside --output) and the metrics read those; files
that are already there from the same weights, seed and options are not sampled again. First come
likelihood under a judge and diversity between samples, with a verdict (docs/evaluation.md). The
judge is --truth, what the rows were drawn from, a synthetic language, or a 3-gram model of the
training text. --sweep gives a knob several values. Always: entropy within a sample and time per
sample. With --scorer (a GPT-2 folder in the Hugging Face layout): generative perplexity, the
official one and a clean one. Where the training text can be loaded (a workdir of ours): text
statistics, n-gram samplers and held-out text beside them, and the held-out loss at fixed times.
"""

from flm_jax.cli.command import Command
from flm_jax.options import Evaluation


def run(options: Evaluation) -> None:
    from flm_jax.host import memory
    from flm_jax.inference import evaluation

    memory.keep_small()
    evaluation.evaluate(options)


COMMAND = Command(__doc__, Evaluation, run)
