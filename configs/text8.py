"""text8: 27 symbols, pieces of 256 characters; the size of published text8 diffusion models.

Command:   python -m flm_jax.main --config=configs/text8.py --workdir=runs/text8 \
               --config.data.options.download=True     (31 MB, or options.path=text8)
           python -m flm_jax.main --config=configs/text8.py:distill --workdir=runs/text8_fmlm
Hardware:  one GPU or more; with ":pretrain,small" 2 CPU cores
Time:      not measured yet; small: 30 minutes (limit: train.max_minutes); its first
           minutes are in benchmarks/corpora.md
Published: there are no flow language models of text8 to compare with

A row is one piece of 256 characters between BOS and EOS, nothing is padded. The split is the usual
one, 90 million characters of training text and 5 million each of validation and test. The stages
residual and second_stage make the flow map in two steps, mdlm, duo and ar are baselines; see
common.py.
"""

from flm_jax.configs import common


def get_config(stage="pretrain"):
    stage, words = common.split_stage(stage, "small", "fast")
    config = common.get_config(stage)
    piece = 64 if "small" in words else 256
    config.data.update(name="text8", length=piece + 2, packing="one_per_row")
    config.data.tokenizer_documents = 2_000  # enough to see 27 symbols
    config.data.options.update(path="", piece=piece, download=False)
    config.tokenizer.name = "characters"
    config.train.update(batch_size=512, steps=500_000)
    workdir = "runs/text8"
    if "small" in words:
        common.small(config)
        workdir += "_small"
    common.finish(config, workdir, words)
    return config
