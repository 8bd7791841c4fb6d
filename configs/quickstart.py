"""Quickstart: names of Unicode characters, from Python's own tables, on two CPU cores.

Command:   python -m flm_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
           (or `make quickstart`, which also installs)
Hardware:  2 CPU cores, 4 GB of memory, no download
Time:      meant for 5 minutes of training; not measured yet
Expected:  not measured yet
"""

from configs import common


def get_config(stage="pretrain"):
    config = common.get_config(stage)
    config.data.name = "unicode_names"
    config.data.length = 32
    config.tokenizer.name = "sentencepiece"
    config.tokenizer.options.vocab_size = 1024
    config.model.update(width=128, depth=4, heads=4, dropout=0.0, head_init="table")
    config.optim.update(learning_rate=2e-3, warmup_steps=50, ema_decay=0.999)
    config.train.update(
        batch_size=32,
        steps=2_300,
        max_minutes=4.5,
        log_every=10,
        eval_every=100,
        sample_every=250,
        save_every=500,
        eval_rows=128,
        eval_taus=(0.05, 0.25, 0.5, 0.75, 0.95),
    )
    # A slightly cold denoiser: the entropy within a sample is then that of the data.
    config.sampler.update(
        steps=(1, 8, 32, 128), num_samples=192, batch_size=64, denoiser_temperature=0.75
    )
    return config
