"""The knobs: frozen dataclasses, one per config section, with the official defaults.

The ConfigDict files in ``configs/`` are what users edit; code receives the ``Config`` below. Each
knob carries its meaning and its range: `--help` prints the one, `validate` checks the other.
"""

import dataclasses
from typing import Any

from flm_jax.knobs import knob
from flm_jax.sampling import Sampling, SamplingKnobs, knob_fields


@dataclasses.dataclass(frozen=True)
class DataConfig:
    name: str = knob("", "data set, a row of flm_jax.data.DATASETS")
    length: int = knob(128, "tokens per block, BOS and EOS included", at_least=3)
    packing: str = knob(
        "wrap",
        "documents to blocks (wrap = end to end, one_per_row = each alone, padded, and with "
        "_cut or _short longer ones are cut or left out, exact = each alone, all of one length)",
        choices=("wrap", "one_per_row", "one_per_row_cut", "one_per_row_short", "exact"),
    )
    cache_dir: str = knob("", "folder of packed blocks ('' = the user's cache folder)")
    num_workers: int = knob(0, "worker processes that read data (0 = this process)", at_least=0)
    drop_remainder_every: int = knob(
        0,
        "documents after which a partial block is dropped (0 = never, official: 1000)",
        at_least=0,
    )
    tokenizer_documents: int = knob(
        100_000, "training documents that a tokenizer is made from (0 = all)", at_least=0
    )
    options: dict = knob({}, "arguments of the data set itself, for example options.path")


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    name: str = knob("", "tokenizer, a row of flm_jax.tokenizers.TOKENIZERS")
    options: dict = knob({}, "arguments of the tokenizer itself, for example options.vocab_size")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    width: int = knob(768, "width of the residual stream", at_least=1)
    depth: int = knob(12, "number of blocks", at_least=1)
    heads: int = knob(12, "attention heads; must divide the width", at_least=1)
    cond_dim: int = knob(128, "width of the time conditioning", at_least=1)
    mlp_ratio: int = knob(4, "MLP width / model width", at_least=1)
    dropout: float = knob(0.1, "dropout on both branches of a block", at_least=0, below=1)
    attention_cap: float = knob(50.0, "soft cap of attention scores (0 = off)", at_least=0)
    attention: str = knob(
        "auto",
        "form (chunked = less memory; splash (TPU), tokamax = kernels; auto = by length, device)",
        choices=("auto", "einsum", "chunked", "splash", "tokamax"),
    )
    learned_positions: int = knob(
        0,
        "positions with a learned vector besides the rotary embedding (0 = none, as published)",
        at_least=0,
    )
    logit_cap: float = knob(30.0, "soft cap of the output logits (0 = off)", at_least=0)
    causal: bool = knob(False, "causal blocks without time and attention cap (loss autoregressive)")
    mask_token: bool = knob(False, "one token more than the tokenizer has (loss masked_diffusion)")
    two_times: bool = knob(False, "condition on two times (flow maps)")
    loss_weighting: bool = knob(False, "learn a weight per time")
    self_conditioning: bool = knob(
        False, "the network sees its own estimate of the text, too (half of the time in training)"
    )
    input_scale: float = knob(
        0.0,
        "standard deviation that the noisy state is brought to at every time (0 = left as it is)",
        at_least=0,
    )
    norm: str = knob("layer", "norm (rms = without a mean)", choices=("layer", "rms"))
    mlp: str = knob(
        "gelu", "MLP (swiglu = gated, of as many parameters)", choices=("gelu", "swiglu")
    )
    qk_norm: bool = knob(False, "RMS norm of queries and keys, per head")
    stream_dtype: str = knob(
        "float32",
        "type of the residual stream between blocks (bfloat16 = half its memory, rounded)",
        choices=("float32", "bfloat16"),
    )
    dtype: str = knob(
        "float32",
        "dtype of matrix products (auto = bfloat16 where it is faster, decided as a run begins)",
        choices=("float32", "bfloat16", "auto"),
    )
    remat: str = knob(
        "auto",
        "what is computed again in the backward pass (full = blocks, products = all but results of "
        "products, none = nothing; auto = by memory on a CPU, full elsewhere)",
        choices=("auto", "full", "products", "none"),
        former={"true": "full", "false": "none"},
    )
    scan_unroll: int = knob(
        0,
        "blocks per iteration of the scan over blocks in training (0 = all on a CPU where nothing "
        "is computed again, else one)",
        at_least=0,
    )
    head_init: str = knob(
        "zero",
        "start of the output layer (table = the embedding table, for small budgets)",
        choices=("zero", "table"),
    )
    tied_head: bool = knob(False, "the output layer is the embedding table, head_init says nothing")
    head_chunk: int = knob(
        0, "tokens per device whose logits exist at one time (0 = by a memory budget)", at_least=0
    )


@dataclasses.dataclass(frozen=True)
class ClockConfig:
    name: str = knob(
        "decoding_accuracy",
        "time the network sees (identity = no reparametrisation)",
        choices=("decoding_accuracy", "identity"),
    )
    quadrature: str = knob(
        "gauss_hermite",
        "integration rule of the clock (gauss_hermite = official, 100 nodes)",
        choices=("gauss_hermite", "exact"),
    )


@dataclasses.dataclass(frozen=True)
class LossConfig:
    name: str = knob("flow_matching", "objective, a row of flm_jax.losses.LOSSES")
    options: dict = knob({}, "arguments of the objective itself")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    name: str = knob(
        "adamw",
        "optimizer (muon = for the matrices of the blocks, AdamW for the rest)",
        choices=("adamw", "muon"),
    )
    learning_rate: float = knob(3e-4, "peak learning rate", above=0)
    beta1: float = knob(0.9, "AdamW first-moment decay", at_least=0, below=1)
    beta2: float = knob(0.999, "AdamW second-moment decay", at_least=0, below=1)
    eps: float = knob(1e-8, "AdamW epsilon", above=0)
    weight_decay: float = knob(0.0, "AdamW weight decay", at_least=0)
    warmup_steps: int = knob(2500, "steps of linear warm-up from 0", at_least=0)
    schedule: str = knob(
        "constant",
        "after the warm-up (stable = constant, then linear over the last part)",
        choices=("constant", "cosine", "linear", "stable"),
    )
    decay_fraction: float = knob(
        0.2,
        "share of all steps (of the time, if train.max_minutes ends it) in which stable decays",
        above=0,
        at_most=1,
    )
    final_scale: float = knob(
        0.0, "last learning rate / peak, for schedules that decay", at_least=0, at_most=1
    )
    clip_norm: float = knob(1.0, "clip the gradient's global norm (0 = off)", at_least=0)
    ema_decay: float = knob(
        0.9999, "decay of the EMA of the parameters (0 = off)", at_least=0, below=1
    )
    ema_decays: tuple[float, ...] = knob(
        (), "decays of more EMAs, to choose among after training (weights=ema:DECAY)",
        above=0, below=1,
    )  # fmt: skip
    accumulation_steps: int = knob(1, "micro-batches per optimizer step", at_least=1)

    @property
    def more_emas(self) -> dict[str, float]:
        """The decays of the EMAs beside the first, by their names in checkpoints."""
        return {f"ema_{decay}": decay for decay in self.ema_decays}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    batch_size: int = knob(512, "sequences per optimizer step, over all devices", at_least=1)
    steps: int = knob(1_000_000, "optimizer steps in all", at_least=1)
    max_minutes: float = knob(
        0.0, "stop after this time of training, compiling not counted (0 = no limit)", at_least=0
    )
    log_every: int = knob(100, "steps between log lines", at_least=1)
    eval_every: int = knob(5_000, "steps between held-out evaluations (0 = never)", at_least=0)
    sample_every: int = knob(10_000, "steps between samples (0 = never)", at_least=0)
    save_every: int = knob(5_000, "steps between checkpoints (0 = only at the end)", at_least=0)
    keep_latest: int = knob(2, "newest checkpoints kept", at_least=1)
    keep_best: int = knob(1, "best checkpoints kept besides, by held-out loss", at_least=0)
    watchdog_seconds: float = knob(
        30.0, "time after which a dead process ends the others of its job", at_least=1
    )
    nonfinite: str = knob(
        "stop",
        "what a batch does whose loss or gradient is not finite (skip = nothing, counted)",
        choices=("stop", "skip"),
    )
    nonfinite_limit: int = knob(10, "batches skipped in a row that end the run", at_least=1)
    spike_factor: float = knob(
        10.0, "gradient norms of so many medians of the last 100 are logged (0 = off)", at_least=0
    )
    wandb: str = knob(
        "", "Weights & Biases project, or ENTITY/PROJECT, that is sent the log ('' = none)"
    )
    profile_steps: tuple[int, ...] = knob(
        (), "FIRST,COUNT: steps whose trace jax.profiler writes to the folder profile (() = none)",
        at_least=1,
    )  # fmt: skip
    compilation_cache: str = knob(
        "workdir", "folder of compiled programs (workdir = its folder compiled, off = none)"
    )
    eval_rows: int = knob(512, "held-out blocks per evaluation", at_least=1)
    eval_taus: tuple[float, ...] = knob(
        (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95),
        "fixed times tau of the held-out loss",
        at_least=0,
        at_most=1,
        nonempty=True,
    )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    data: int = knob(-1, "devices along the batch (-1 = all that remain)", at_least=-1)
    fsdp: int = knob(1, "devices that share parameters and batch (-1 = the rest)", at_least=-1)
    tensor: int = knob(1, "devices that share the vocabulary (-1 = the rest)", at_least=-1)


@dataclasses.dataclass(frozen=True)
class SamplerConfig(SamplingKnobs):
    name: str = knob("euler", "sampler, a row of flm_jax.samplers.SAMPLERS")
    steps: tuple[int, ...] = knob(
        (1, 8, 32), "numbers of network evaluations to sample with", at_least=1, nonempty=True
    )
    num_samples: int = knob(64, "samples per number of steps", at_least=1)
    batch_size: int = knob(32, "samples made at one time", at_least=1)
    options: dict = knob({}, "arguments of the sampler itself")

    def sampling(self, steps: int) -> Sampling:
        """These knobs, for one number of steps."""
        values = dataclasses.asdict(self)
        return Sampling(steps=steps, **{f.name: values[f.name] for f in knob_fields()})


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a run. Hashable (options excepted), compared by value."""

    seed: int = knob(1, "root of all randomness", at_least=0, below=2**32)
    stage: str = knob("pretrain", "label of the stage: pretrain, distill, ...")
    space: str = knob(
        "auto",
        "state space (auto = projected if vocabulary > 2 x width of all tables)",
        choices=("auto", "onehot", "projected"),
    )
    init_from: str = knob("", "checkpoint whose parameters start this run ('' = random)")
    teacher: str = knob("", "checkpoint of the frozen teacher ('' = none)")
    masked_teacher: str = knob(
        "", "checkpoint of a masked diffusion model that teaches, too ('' = none; any_order)"
    )
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    clock: ClockConfig = ClockConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    sampler: SamplerConfig = SamplerConfig()
    evals: tuple[str, ...] = knob(
        ("text_statistics",), "evaluators to run, rows of flm_jax.evals.EVALS"
    )
    eval_options: dict = knob({}, "arguments of the evaluators, a dict for each by its name")


# The one list of what may differ between runs of the same workdir: how long, how often, where it
# runs and how it is looked at, but nothing that decides which numbers a training step computes.
CHANGEABLE = (
    "train.steps",
    "train.max_minutes",
    "train.log_every",
    "train.eval_every",
    "train.sample_every",
    "train.save_every",
    "train.keep_latest",
    "train.keep_best",
    "train.watchdog_seconds",
    "train.nonfinite",
    "train.nonfinite_limit",
    "train.spike_factor",
    "train.wandb",
    "train.profile_steps",
    "train.compilation_cache",
    "train.eval_rows",
    "train.eval_taus",
    "sampler",
    "mesh",
    "evals",
    "eval_options",
    "data.num_workers",
    "data.cache_dir",
    "data.options.format",  # rows and tokenizer are compared by what comes out of the files
    "model.remat",
    "model.scan_unroll",
    "model.head_chunk",
    "model.attention",
)


# Knobs of earlier versions, "section.key", that the stored config of an old run may still have.
REMOVED: tuple[str, ...] = ("train.checkpoints", "train.mirror")


def is_changeable(key: str) -> bool:
    """Whether "section.key" may change between runs of one workdir; see CHANGEABLE."""
    return any(key == free or key.startswith(free + ".") for free in CHANGEABLE)


def knobs(section: Any = Config, prefix: str = "") -> list[tuple[str, dataclasses.Field]]:
    """All (dotted name, field) pairs below a section class, in order of definition."""
    found = []
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(field.type):
            found += knobs(field.type, f"{prefix}{field.name}.")
        else:
            found.append((prefix + field.name, field))
    return found


def value_at(config: Any, key: str) -> Any:
    """The value at a dotted name, for example ``value_at(config, "optim.beta1")``."""
    for part in key.split("."):
        config = vars(config)[part]
    return config
