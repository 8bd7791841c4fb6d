"""WikiText-103 in GPT-2's BPE; ":pretrain,small" is WikiText-2 in 2,048 pieces.

Command:   python -m flm_jax.main --config=configs/wikitext.py --workdir=runs/wikitext \
               --config.data.options.download=True     (192 MB, or options.path=FOLDER)
           python -m flm_jax.main --config=configs/wikitext.py:distill --workdir=runs/wikitext_fmlm
Hardware:  one GPU or more; small: 2 CPU cores
Time:      not measured yet; small: 30 minutes (limit: train.max_minutes); its first
           minutes are in benchmarks/corpora.md
Published: there are no flow language models of WikiText to compare with

A document is an article; options.document=line makes it a line, as the official code has it. The
stages residual and second_stage make the flow map in two steps, mdlm, duo and ar are baselines; see
common.py.
"""

from flm_jax.configs import common


def get_config(stage="pretrain"):
    stage, words = common.split_stage(stage, "small", "fast")
    config = common.get_config(stage)
    config.data.update(name="wikitext103", length=256)
    config.data.options.update(path="", document="article", download=False)
    config.tokenizer.name = "gpt2"
    config.tokenizer.options.update(folder="", download=True)
    config.model.dtype = "bfloat16"
    config.train.update(batch_size=256, steps=200_000)
    workdir = "runs/wikitext"
    if "small" in words:
        common.small(config)
        config.data.update(name="wikitext2", length=64)
        config.tokenizer = common.pieces(2048)
        workdir += "_small"
    common.finish(config, workdir, words)
    return config
