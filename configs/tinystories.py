"""TinyStories: stories for small children, in 4,096 pieces of their own.

Command:   python -m flm_jax.main --config=configs/tinystories.py --workdir=runs/tinystories \
               --config.data.options.download=True     (2.2 GB, or options.path=FOLDER)
           python -m flm_jax.main --config=configs/tinystories.py:distill \
               --workdir=runs/tinystories_fmlm
Hardware:  one GPU; with ":pretrain,small" 2 CPU cores
Time:      not measured yet; small: 30 minutes (limit: train.max_minutes), see benchmarks/corpora.md
Published: generative perplexity under GPT-2 large, and entropy of the samples in nats, by the FMLM+
           page (arXiv 2606.24773): FMLM+ 17.5 (3.96) with 4 rounds of 8 steps, 32 evaluations; FLM
           57.5 with 128 steps, masked diffusion 18.7 (4.03) with 128, autoregressive 8.9 (4.01).
           To compare with these the text must be cut as there: stories of at most 126 tokens of
           GPT-2, one in a row of 128 with padding, batches of 512; not 256 pieces end to end.

The stages residual and second_stage make the flow map in two steps, mdlm, duo and ar are baselines;
see common.py.
"""

from flm_jax.configs import common


def get_config(stage="pretrain"):
    stage, words = common.split_stage(stage, "small", "fast")
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
    common.finish(config, workdir, words)
    return config
