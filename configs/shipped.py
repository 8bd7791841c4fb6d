"""The models that come with the package: flm_jax.load("stories") and its companions.

Command:   flm prepare --truth=stories260K.bin --rows=400000 --data_dir=runs/story_rows
           python benchmarks/story_texts.py runs/story_rows runs/story_texts
           python -m flm_jax.main --config=configs/shipped.py --workdir=runs/stories_denoiser
           python -m flm_jax.main --config=configs/shipped.py:any_order --workdir=runs/stories \
               --config.teacher=runs/stories_denoiser
Hardware:  one CPU core
Time:      benchmarks/shipped.md
Expected:  whole sentences of children's stories (benchmarks/shipped.md)

The text is drawn from stories260K, a model of 260,032 parameters (MIT licence) that was trained on
TinyStories, and cut at the end of a sentence: what is written here can be judged exactly. A row is
one text of two or three sentences. The stages ar and mdlm are the baselines of the same network.
"""

from flm_jax.configs import common


def get_config(stage="pretrain"):
    stage, _ = common.split_stage(stage)
    config = common.get_config(stage)
    config.data.update(name="text_files", length=44, packing="one_per_row_short")
    config.data.options.update(
        path="runs/story_texts/train.jsonl", valid_path="runs/story_texts/valid.jsonl"
    )
    config.tokenizer = common.pieces(2048)
    config.model.update(width=128, depth=6, heads=4, dropout=0.0, head_init="table")
    config.model.learned_positions = config.data.length
    config.optim.update(learning_rate=2e-3, warmup_steps=200, schedule="stable", ema_decay=0.999)
    config.train.update(
        batch_size=64,
        steps=12_000,
        log_every=50,
        eval_every=500,
        sample_every=2_000,
        save_every=500,
        eval_rows=256,
        eval_taus=(0.05, 0.25, 0.5, 0.75, 0.95),
    )
    config.sampler.update(num_samples=64, batch_size=64)
    config.evals = ("text_statistics", "diversity", "copying")
    common.finish(config, words={"fast"})
    if stage not in ("ar", "mdlm"):
        config.optim.name = "muon"
    return config
