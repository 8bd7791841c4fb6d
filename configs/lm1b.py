"""One Billion Word Benchmark (LM1B): the published recipe, 128 tokens of WordPiece.

Command:   flm prepare --config=configs/lm1b.py \
               --config.data.options.download=True     (once; 1.8 GB, or options.path=ARCHIVE)
           python -m flm_jax.main --config=configs/lm1b.py --workdir=runs/lm1b
           python -m flm_jax.main --config=configs/lm1b.py:distill --workdir=runs/lm1b_fmlm
Hardware:  the official code used 8 H100 GPUs
Time:      official: about 2 days of pretraining, less than 1 day of distillation; this code: not
           measured yet
Published: generative perplexity under GPT-2 large, and entropy of the samples in nats.
           FLM, steps 8/32/128/1024: 243.36 (2.41), 152.01 (4.40), 112.54 (4.34), 96.91 (4.29)
           FMLM, steps 1/2/4/8/32: 119.34 (4.16), 110.19 (4.21), 98.76 (4.21), 86.32 (4.21),
           69.21 (4.21). Data: about 53 (4.31).

The two-stage method of the first version: --config=configs/lm1b.py:residual with
--workdir=runs/lm1b_residual, then :second_stage (published one-step value, read off a figure: 104).
Baselines on the same data and network: :mdlm, :duo and :ar. After a comma, :pretrain,fast, our own
recipe instead of the published one.

The validation text is the official test split, as in the official code. That code also drops the
remainder of every 1000 documents; --config.data.drop_remainder_every=1000 does it here. The
released FMLM was trained for 550,000 steps from random parameters with beta2=0.999; the values here
are those of the official script.
"""

from flm_jax.configs import common


def get_config(stage="pretrain"):
    stage, words = common.split_stage(stage, "fast")
    config = common.get_config(stage)
    config.data.update(name="lm1b", length=128)
    config.data.options.update(path="", download=False)
    config.tokenizer.name = "bert-base-uncased"
    config.tokenizer.options.update(folder="", download=True)
    config.model.dtype = "bfloat16"
    config.train.update(batch_size=512, steps=1_000_000)
    scratch = common.from_scratch(config)
    config.sampler.steps = (8, 32, 128) if scratch else (1, 2, 4, 8, 32)
    if config.sampler.name == "flow_map":
        config.sampler.gamma = 0.8
    common.finish(config, "runs/lm1b", words)
    return config
