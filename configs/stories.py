"""Children's stories with a known truth: rows drawn from a small language model, scored by it.

Command:   flm prepare --truth=stories260K.bin --rows=256000 --data_dir=runs/stories_rows
           python -m flm_jax.main --config=configs/stories.py --workdir=runs/stories \
               --config.data.options.path=runs/stories_rows
           flm evaluate --checkpoint=runs/stories --steps=8,32,128 --num_samples=192 \
               --sampler=churn
Hardware:  one CPU core: 4,000 steps of 64 rows, each row once
Expected:  an hour; held-out loss 1.13; by 128 steps of the sampler churn 3.9 nats a token under the
           truth, whose own text has 1.1, at its diversity (benchmarks/stories.md)

stories260K.bin is a model of 260,032 parameters in the layout of llama2.c, its vocabulary
tok512.bin lies beside it. Any autoregressive run of yours, or a GPT-2 folder, serves as a truth as
well. A row is BOS and 64 tokens; nothing ends it. The tokenizer comes with the rows.

The stages distill (with --config.teacher), mdlm, duo and ar are those of common.py. The word fast
is our own recipe: 3.4 nats by 32 evaluations, 4.2 by 8, at that diversity, and prompts.
"""

from flm_jax.configs import common


def get_config(stage="pretrain"):
    stage, words = common.split_stage(stage, "fast")
    config = common.get_config(stage)
    config.data.update(name="prepared", length=65)
    config.data.options.path = ""  # required: the --data_dir of flm prepare --truth
    config.model.update(width=128, depth=4, heads=4, dropout=0.0, head_init="table")
    rate = 2e-3 if "fast" in words and common.from_scratch(config) else 1e-3
    config.optim.update(learning_rate=rate, warmup_steps=200, ema_decay=0.999)
    config.train.update(
        batch_size=64,
        steps=4_000,
        log_every=50,
        eval_every=500,
        sample_every=1_000,
        save_every=500,
        eval_rows=256,
        eval_taus=(0.05, 0.25, 0.5, 0.75, 0.95),
    )
    config.sampler.update(num_samples=192, batch_size=64)
    config.evals = ("text_statistics", "diversity", "copying")
    if common.from_scratch(config):
        config.sampler.steps = (8, 32, 128)
    common.finish(config, "runs/stories", words)
    return config
