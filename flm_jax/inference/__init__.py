"""Trained models: loaded, asked for samples, evaluated, converted.

model.py       the model as an object that samples; loading.py reads one from disk
choose_sampler.py  which sampler it is sampled with; programs.py: its compiled samplers
given.py       prompts, texts with holes: which tokens are given, what is read of the result
scoring.py     how well every token fits the others; refining.py: the worst ones written again
spans.py       gaps of unknown length: which number of tokens fits best
likelihood.py  how likely given text is: exact, or a bound (flow_bounds.py, token_bounds.py;
               by_rows.py: rows in batches)
heldout.py     the loss on held-out rows at fixed times
evaluation.py  samples at several numbers of steps, and every metric that can be computed
conversion.py  official checkpoints to workdirs and back
"""

from flm_jax.inference.loading import (
    OF_OFFICIAL,
    TOKENIZER_FOLDER,
    is_workdir,
    load,
    place,
    read_config,
)
from flm_jax.inference.model import FlowModel, Samples
from flm_jax.samplers.base import Given

__all__ = [
    "OF_OFFICIAL",
    "TOKENIZER_FOLDER",
    "FlowModel",
    "Given",
    "Samples",
    "is_workdir",
    "load",
    "place",
    "read_config",
]
