"""Penn Treebank, a million words of news: small enough to overfit, good for comparisons.

Command:   python -m flm_jax.main --config=configs/ptb.py --workdir=runs/ptb \
               --config.data.options.path=FOLDER     (ptb.train.txt ..., or simple-examples.tgz)
           python -m flm_jax.main --config=configs/ptb.py:distill --workdir=runs/ptb_fmlm
Hardware:  one GPU, or many CPU cores and patience
Time:      not measured yet
Published: there are no flow language models of PTB to compare with

Its licence forbids passing it on, so it is not downloaded. <unk> is read as "?", N as 1, as in the
official code. The stages residual and second_stage make the flow map in two steps, mdlm, duo and ar
are baselines; see common.py.
"""

from flm_jax.configs import common


def get_config(stage="pretrain"):
    stage, words = common.split_stage(stage, "fast")
    config = common.get_config(stage)
    config.data.update(name="ptb", length=64)
    config.data.options.path = ""
    config.tokenizer = common.pieces(2048)
    config.model.update(common.PRESETS["tiny"])
    config.optim.update(warmup_steps=500, ema_decay=0.999)
    config.train.update(batch_size=128, steps=20_000, eval_every=500, sample_every=2_000)
    common.finish(config, "runs/ptb", words)
    return config
