"""The models that come with the package: flm_jax.load("stories") and its companions.

Command:   flm prepare --truth=stories260K.bin --rows=300000 --data_dir=runs/story_rows
           python benchmarks/story_texts.py runs/story_rows runs/story_texts
           python -m flm_jax.main --config=configs/shipped.py --workdir=runs/stories_denoiser
           python -m flm_jax.main --config=configs/shipped.py:distill --workdir=runs/stories
Hardware:  one CPU core, better with bfloat16 products
Time:      an hour (9,000 steps), and 25 minutes of distillation (limit: train.max_minutes)
Expected:  with 8 evaluations 0.70 nats a character under the source and distinct-4 0.65, whose own
           text has 0.43 and 0.62; the flow map has 1.25 with one (benchmarks/shipped.md)

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
    config.model.update(width=128, depth=6, heads=4, dropout=0.0, head_init="table", dtype="auto")
    config.model.learned_positions = config.data.length
    config.optim.update(learning_rate=2e-3, warmup_steps=200, schedule="stable", ema_decay=0.999)
    config.train.update(
        batch_size=64,
        steps=9_000,
        log_every=50,
        eval_every=500,
        sample_every=0,
        save_every=250,
        eval_rows=256,
        eval_taus=(0.05, 0.25, 0.5, 0.75, 0.95),
    )
    config.sampler.update(num_samples=256, batch_size=128)
    config.evals = ("text_statistics", "diversity", "copying")
    common.finish(config, "runs/stories", {"fast"})
    config.optim.name = "muon"
    if config.sampler.name == "refinement":
        # Sharper than the network says: its texts would be more diverse than those of the source.
        config.sampler.update(steps=(1, 2, 8), denoiser_temperature=0.7)
    if stage == "distill":
        config.teacher = "runs/stories_denoiser"
        config.optim.update(learning_rate=1e-3, warmup_steps=50, ema_decay=0.995)
        config.train.update(steps=4_000, max_minutes=25.0)
        # Whole jumps are what few steps are made of, and one step has nothing given.
        config.loss.options.update(boundary_fraction=0.25, diagonal_fraction=0.25, given_none=0.25)
    return config
