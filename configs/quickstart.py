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
    config.model.update(width=192, depth=6, heads=6, dropout=0.0, remat=False)
    config.optim.update(learning_rate=1e-3, warmup_steps=100, ema_decay=0.999)
    config.train.update(
        batch_size=64,
        steps=3_000,
        max_minutes=4.5,
        log_every=20,
        eval_every=250,
        sample_every=1_000,
        save_every=500,
        eval_rows=256,
    )
    config.sampler.update(steps=(1, 8, 32), num_samples=64, batch_size=64)
    return config
