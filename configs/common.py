"""What every config starts from: the defaults, the model sizes, and the stages of a method.

Not a runnable experiment: it names no data set. A config file starts from here and changes what
differs:

    from flm_jax.configs import common

    def get_config(stage="pretrain"):
        config = common.get_config(stage)
        config.data.name = "text_files"
        config.model.update(common.PRESETS["tiny"])
        return config

`flm train --help` prints every knob with its default and meaning; they stand in
flm_jax/config/settings.py and nowhere else. Every value can be overridden on the command line, for
example --config.optim.learning_rate=1e-3.
"""

import dataclasses
import functools
from collections.abc import Collection, Sequence

from ml_collections import ConfigDict

from flm_jax.config import Config
from flm_jax.errors import UserError

# The sizes of the official code; heads of 32 or 64, time conditioning 128 wide in all of them.
PRESETS = {
    "tiny": dict(width=256, depth=8, heads=8, cond_dim=128),
    "small": dict(width=768, depth=12, heads=12, cond_dim=128),
    "medium": dict(width=1024, depth=24, heads=16, cond_dim=128),
    "xlarge": dict(width=1600, depth=48, heads=25, cond_dim=128),
}
# Loss and sampler of each.
BASELINES = {
    "mdlm": ("masked_diffusion", "ancestral_masked"),
    "duo": ("uniform_diffusion", "ancestral_uniform"),
    "ar": ("autoregressive", "autoregressive"),
}
# Diffusions on tokens that are distilled into themselves: loss, sampler, rounds, and what the
# published commands train at most.
SELF_DISTILLED = {
    "sdtt": ("sdtt", "ancestral_masked", 8),
    "dcd": ("dcd", "ancestral_uniform", 5),
}
ROUND, ROUNDS_BATCH = 10_000, 128
# Share of samples on the diagonal, where it is a denoiser, and sampler.
ANY_ORDER = {
    "any_order": (0.5, "flow_map"),
    "any_order_denoiser": (1.0, "euler"),
}
# Of a network trained with given tokens: rounds of one or a few evaluations, each of which keeps
# its share of the most probable tokens.
FAST_SAMPLER = {"name": "refinement", "rounds": 16, "threshold": -1.0, "gamma": 0.0}
# Every round begins at tau = 0, with nothing but noise and what is given: early times matter most.
EARLY_TIMES = {"tau_spread": 1.5, "tau_centre": -1.5}
# In smaller batches AdamW learns faster (benchmarks/recipe.md): Muon moves all directions alike,
# also those in which a gradient is nothing but noise.
MUON_TOKENS = 4_096
STAGES = (
    *("pretrain", "distill", "residual", "second_stage"),
    *(*ANY_ORDER, *BASELINES, *SELF_DISTILLED),
)


def get_config(stage: str = "pretrain") -> ConfigDict:
    """All knobs at their defaults: the official recipe at size "small".

    Args:
      stage: what comes after the colon of --config=FILE:STAGE. "pretrain" trains a denoiser (FLM),
        "distill" a flow map (FMLM) from the denoiser that --config.teacher names. "residual" and
        then "second_stage" make one in the two steps of the method's first version: a correction of
        the denoiser, and a flow map of both together, whose --config.teacher is the correction.
        "any_order" trains a flow map that any tokens may be given to (FMLM+) from scratch, and
        "any_order_denoiser" only what it is on the diagonal. The others are baselines; "sdtt" and
        "dcd" are distilled, from the mdlm or the duo run that --config.teacher names.
    """
    if stage not in STAGES:
        raise _no_stage(stage)
    config = ConfigDict(dataclasses.asdict(Config()))
    if stage in _AFTER_PRETRAINING:
        _AFTER_PRETRAINING[stage](config)
    return config


def distill(config: ConfigDict) -> None:
    """Makes a config of a denoiser one of its flow map: the official distillation (PSD)."""
    _of_two_times(config, "distill", "psd", "flow_map")
    config.optim.beta2 = 0.95


def residual(config: ConfigDict) -> None:
    """... one of the correction that turns its steps into jumps: the first of two stages."""
    _of_two_times(config, "residual", "residual", "two_model")
    config.model.loss_weighting = True


def second_stage(config: ConfigDict) -> None:
    """... one of the flow map of denoiser and correction; the second of two stages."""
    _of_two_times(config, "second_stage", "second_stage", "flow_map")


def any_order(config: ConfigDict, name: str) -> None:
    """... one of a flow map that completes any subset of a text, as published: no teacher."""
    diagonal_fraction, sampler = ANY_ORDER[name]
    config.stage, config.loss.name = name, "any_order"
    config.loss.options = dict(diagonal_fraction=diagonal_fraction)
    config.clock.name = "identity"
    config.model.two_times = True
    config.sampler.update(name=sampler, steps=(1, 2, 4, 8, 32))


def baseline(config: ConfigDict, name: str) -> None:
    """... one of a baseline: another objective, and the sampler and network that go with it."""
    config.stage = name
    config.loss.name, config.sampler.name = BASELINES[name]
    config.model.mask_token = name == "mdlm"
    config.model.causal = name == "ar"
    config.sampler.steps = (8, 32, 128)


def self_distilled(config: ConfigDict, name: str) -> None:
    """... one of a masked or a uniform diffusion that is distilled into itself, round by round."""
    config.stage = name
    config.loss.name, config.sampler.name, _ = SELF_DISTILLED[name]
    config.init_from = "teacher"
    config.model.mask_token = name == "sdtt"
    config.sampler.steps = (1, 2, 4, 8, 32)
    if name == "dcd":
        config.optim.update(learning_rate=6e-5, warmup_steps=500)


_AFTER_PRETRAINING = {
    "distill": distill,
    "residual": residual,
    "second_stage": second_stage,
    **{name: functools.partial(any_order, name=name) for name in ANY_ORDER},
    **{name: functools.partial(baseline, name=name) for name in BASELINES},
    **{name: functools.partial(self_distilled, name=name) for name in SELF_DISTILLED},
}


def _of_two_times(config: ConfigDict, stage: str, loss: str, sampler: str) -> None:
    config.stage = stage
    config.loss.name = loss
    config.model.two_times = True
    config.init_from = "teacher"
    config.sampler.update(name=sampler, steps=(1, 2, 4, 8))


def from_scratch(config: ConfigDict) -> bool:
    """Whether the stage starts from random parameters and needs no teacher."""
    return config.stage == "pretrain" or config.stage in (*ANY_ORDER, *BASELINES)


def teach(config: ConfigDict, workdir: str) -> None:
    """Names the teacher by the convention of these configs: the workdir of the stage before."""
    before = {"second_stage": "_residual", "sdtt": "_mdlm", "dcd": "_duo"}
    if not from_scratch(config):
        config.teacher = workdir + before.get(config.stage, "")


def finish(config: ConfigDict, workdir: str = "", words: Collection[str] = ()) -> None:
    """What follows from the rest of a config, to be called at its end.

    Names the teacher (without a workdir --config.teacher does), the steps of the autoregressive
    baseline, one for every token after the first, and the rounds of a diffusion that is distilled
    into itself. With the word "fast" or "small" our own recipe
    replaces the official one.
    """
    if {"fast", "small"} & set(words):
        fast(config)
    if workdir:
        teach(config, workdir)
    if config.stage in SELF_DISTILLED:
        share_rounds(config)
    if config.stage == "ar":
        config.sampler.steps = (config.data.length - 1,)


def share_rounds(config: ConfigDict) -> None:
    """... one whose rounds share the training, which is at most as long as the published one."""
    rounds = SELF_DISTILLED[config.stage][-1]
    steps = min(config.train.steps, rounds * ROUND)
    config.train.update(steps=steps, batch_size=min(config.train.batch_size, ROUNDS_BATCH))
    config.loss.options.update(every=max(1, steps // rounds), rounds=rounds)


def split_stage(stage: str, *words: str) -> tuple[str, set[str]]:
    """("distill", {"small"}) of "distill,small"; the stage may be left out.

    Args:
      words: that may follow; they mean what the calling config file says.
    """
    parts = [part.strip() for part in stage.split(",") if part.strip()]
    given = {part for part in parts if part in words}
    stages = [part for part in parts if part not in words]
    if len(stages) > 1 or stages and stages[0] not in STAGES:
        raise _no_stage(stage, words)
    return (stages or ["pretrain"])[0], given


def _no_stage(stage: str, words: Sequence[str] = ()) -> UserError:
    after = f", and after a comma {' or '.join(words)}" if words else ""
    return UserError(
        f"this config has no stage {stage!r}; write one of {', '.join(STAGES)} after the colon"
        + after
    )


def give_tokens(config: ConfigDict) -> None:
    """... one whose network sees given tokens in training, where its loss can do that."""
    if config.loss.name in ("flow_matching", "psd", "lsd", "esd"):  # any_order does so by itself
        config.loss.options.given = "uniform"


def fast(config: ConfigDict) -> None:
    """... one of our own recipe: better text from the same minutes (benchmarks/recipe.md).

    Any tokens are given in training, so that the model writes in rounds which keep what is sure,
    and continues prompts and fills gaps, too; times are early ones more often. Large batches have
    Muon for the matrices of the blocks.
    """
    if config.train.batch_size * config.data.length >= MUON_TOKENS:
        config.optim.name = "muon"
    give_tokens(config)
    if config.loss.name == "flow_matching":
        config.loss.options.update(EARLY_TIMES)
    if config.stage in ("pretrain", "distill", *ANY_ORDER):
        config.sampler.update(FAST_SAMPLER)


def pieces(vocab_size: int) -> ConfigDict:
    """A tokenizer section: SentencePiece trained on the corpus."""
    return ConfigDict(dict(name="sentencepiece", options=dict(vocab_size=vocab_size)))


def small(config: ConfigDict) -> None:
    """Shrinks model and training to half an hour on two CPU cores."""
    config.model.update(width=128, depth=4, heads=4, dropout=0.0, dtype="auto")
    config.model.head_init = "table"
    rate = 4e-3 if from_scratch(config) else 1e-3
    config.optim.update(learning_rate=rate, warmup_steps=100, ema_decay=0.999)
    config.train.update(
        batch_size=32,
        steps=6_000,
        max_minutes=30.0,
        log_every=20,
        eval_every=250,
        sample_every=1_000,
        save_every=500,
        eval_rows=128,
        eval_taus=(0.05, 0.25, 0.5, 0.75, 0.95),
    )
