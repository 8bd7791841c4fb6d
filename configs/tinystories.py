"""TinyStories: stories for small children, in 4,096 pieces of their own.

Command:   python -m flm_jax.main --config=configs/tinystories.py --workdir=runs/tinystories \
               --config.data.options.download=True     (2.2 GB, or options.path=FOLDER)
           python -m flm_jax.main --config=configs/tinystories.py:distill \
               --workdir=runs/tinystories_fmlm
Hardware:  one GPU; with ":pretrain,small" 2 CPU cores
Time:      not measured yet; small: 30 minutes (limit: train.max_minutes), see benchmarks/corpora.md
Published: there are no flow language models of TinyStories to compare with

The stages residual and second_stage make the flow map in two steps; see common.py.
"""

from configs import common


def get_config(stage="pretrain"):
    stage, words = common.split_stage(stage, "small")
    config = common.get_config(stage)
    config.data.update(name="tinystories", length=256)
    config.data.options.update(path="", download=False)
    config.tokenizer = common.pieces(4096)
    config.model.update(width=512, depth=8, heads=8, dtype="bfloat16")
    config.train.update(batch_size=256, steps=100_000)
    workdir = "runs/tinystories"
    if "small" in words:
        common.small(config)
        config.data.length = 64
        config.tokenizer = common.pieces(1024)
        workdir += "_small"
    common.finish(config, workdir)
    return config
