"""Quickstart: short children's stories, which come with this package, on two CPU cores.

Command:   flm quickstart   (or `make quickstart`, which also installs), or by hand
           python -m flm_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
           python -m flm_jax.main --config=configs/quickstart.py:distill \
               --workdir=runs/quickstart_fmlm
Hardware:  2 CPU cores, 1 GB of memory, no download
Time:      2.5 minutes of training, 1 of distillation (limits: train.max_minutes), and as much
           again for compiling and sampling
Reached:   docs/results.md
"""

from flm_jax.configs import common


def get_config(stage="pretrain"):
    config = common.get_config(stage)
    config.data.update(name="short_stories", length=44, packing="one_per_row_short")
    config.tokenizer = common.pieces(2048)
    config.model.update(width=128, depth=4, heads=4, dropout=0.0, head_init="table", dtype="auto")
    # Stories begin alike: where a word stands says much about it.
    config.model.learned_positions = config.data.length
    config.optim.update(learning_rate=2e-3, warmup_steps=50, schedule="stable", ema_decay=0.99)
    config.train.update(
        batch_size=64,
        steps=1_000,
        max_minutes=2.5,
        log_every=10,
        eval_every=100,
        sample_every=250,
        save_every=250,
        eval_rows=128,
        eval_taus=(0.05, 0.25, 0.5, 0.75, 0.95),
    )
    config.sampler.update(num_samples=192, batch_size=64)
    if stage == "pretrain":
        config.sampler.steps = (1, 8, 32)
    elif not common.from_scratch(config):
        if stage == "distill":
            config.loss.options.boundary_fraction = 1 / 16  # a row of 16; lsd: 0
        config.optim.learning_rate = 1e-3
        config.train.update(steps=300, max_minutes=1.0)
        config.sampler.steps = (1, 2, 4, 8)
    common.finish(config, "runs/quickstart", {"fast"})
    return config
