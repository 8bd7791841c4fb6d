"""The base of every config: all knobs with their default values, and the model sizes.

Not a runnable experiment: it names no data set. A config file starts from here and changes what
differs:

    from configs import common

    def get_config(stage="pretrain"):
        config = common.get_config(stage)
        config.data.name = "text_files"
        config.model.update(common.PRESETS["tiny"])
        return config

Every value can be overridden on the command line, for example --config.optim.learning_rate=1e-3.
The meaning of each knob: `python -m flm_jax.main --help`, or flm_jax/config/settings.py.
"""

from ml_collections import ConfigDict

from flm_jax.errors import UserError

# The sizes of the official code; heads of 32 or 64, time conditioning 128 wide in all of them.
PRESETS = {
    "tiny": dict(width=256, depth=8, heads=8, cond_dim=128),
    "small": dict(width=768, depth=12, heads=12, cond_dim=128),
    "medium": dict(width=1024, depth=24, heads=16, cond_dim=128),
    "xlarge": dict(width=1600, depth=48, heads=25, cond_dim=128),
}


STAGES = ("pretrain", "distill")


def get_config(stage: str = "pretrain", stages: tuple[str, ...] = STAGES) -> ConfigDict:
    """All knobs at their defaults: the official recipe at size "small".

    Args:
      stage: what comes after the colon of --config=FILE:STAGE. "pretrain" trains a denoiser (FLM),
        "distill" a flow map (FMLM) from the denoiser that --config.teacher names.
      stages: the stages that the calling config file knows.
    """
    if stage not in stages:
        raise UserError(f"this config has no stage {stage!r}; it has {', '.join(stages)}")
    config = ConfigDict()
    config.seed = 1
    config.stage = stage
    config.space = "auto"
    config.init_from = ""
    config.teacher = ""
    config.data = ConfigDict(
        dict(
            name="",
            length=128,
            packing="wrap",
            cache_dir="",
            num_workers=0,
            drop_remainder_every=0,
            tokenizer_documents=100_000,
            options={},
        )
    )
    config.tokenizer = ConfigDict(dict(name="", options={}))
    config.model = ConfigDict(
        dict(
            **PRESETS["small"],
            mlp_ratio=4,
            dropout=0.1,
            attention_cap=50.0,
            logit_cap=30.0,
            causal=False,
            mask_token=False,
            two_times=False,
            loss_weighting=False,
            dtype="float32",
            remat=True,
            scan_unroll=1,
            head_init="zero",
            head_chunk=1024,
        )
    )
    config.clock = ConfigDict(dict(name="decoding_accuracy", quadrature="gauss_hermite"))
    config.loss = ConfigDict(dict(name="flow_matching", options={}))
    config.optim = ConfigDict(
        dict(
            learning_rate=3e-4,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            weight_decay=0.0,
            warmup_steps=2500,
            schedule="constant",
            final_scale=0.0,
            clip_norm=1.0,
            ema_decay=0.9999,
            accumulation_steps=1,
        )
    )
    config.train = ConfigDict(
        dict(
            batch_size=512,
            steps=1_000_000,
            max_minutes=0.0,
            log_every=100,
            eval_every=5_000,
            sample_every=10_000,
            save_every=5_000,
            keep_latest=2,
            keep_best=1,
            eval_rows=512,
            eval_taus=(0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95),
        )
    )
    config.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))
    config.sampler = ConfigDict(
        dict(
            name="euler",
            steps=(1, 8, 32),
            num_samples=64,
            batch_size=32,
            temperature=0.0,
            top_p=1.0,
            denoiser_temperature=1.0,
            prior_scale=1.0,
            patience=0,
            options={},
        )
    )
    config.evals = ("text_statistics",)
    if stage == "distill":
        distill(config)
    return config


def distill(config: ConfigDict) -> None:
    """Makes a config of a denoiser one of its flow map: the official distillation (PSD)."""
    config.stage = "distill"
    config.loss.name = "psd"
    config.model.two_times = True
    config.init_from = "teacher"
    config.optim.beta2 = 0.95
    config.sampler.update(name="flow_map", steps=(1, 2, 4, 8))
