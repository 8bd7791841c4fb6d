"""English about programming: the documentation that comes with Python itself, no download.

Command:   python -m flm_jax.main --config=configs/python_prose.py --workdir=runs/python_prose
Hardware:  one GPU, or many CPU cores and patience
Time:      not measured yet
Expected:  not measured yet; the text depends on the Python version, so numbers do too

--config=configs/python_prose.py:characters spells instead of writing pieces of words.
"""

from configs import common


def get_config(stage="pretrain"):
    config = common.get_config(stage, stages=("pretrain", "characters"))
    config.stage = "pretrain"
    config.data.name = "python_prose"
    config.data.length = 64
    if stage == "characters":
        config.data.length = 128
        config.tokenizer.name = "characters"
    else:
        config.tokenizer.name = "sentencepiece"
        config.tokenizer.options.vocab_size = 2048
    config.model.update(common.PRESETS["tiny"])
    config.optim.update(warmup_steps=500, ema_decay=0.999)
    config.train.update(
        batch_size=128,
        steps=20_000,
        log_every=50,
        eval_every=500,
        sample_every=2_000,
        save_every=1_000,
        eval_rows=256,
    )
    return config
