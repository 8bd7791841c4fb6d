"""OpenWebText: the published recipe, 1024 tokens of GPT-2's BPE.

Command:   hf download Skylion007/openwebtext --repo-type dataset     (once; 13 GB)
           flm prepare --config=configs/owt.py
           python -m flm_jax.main --config=configs/owt.py --workdir=runs/owt
           python -m flm_jax.main --config=configs/owt.py:distill --workdir=runs/owt_fmlm
Hardware:  the official code used 8 H100 GPUs
Time:      official: about 5 days of pretraining, less than 1 day of distillation; this code: not
           measured yet
Published: generative perplexity under GPT-2 large, and entropy of the samples in nats.
           FLM, steps 8/32/128/1024: 449.15 (5.21), 240.11 (5.72), 103.30 (5.58), 62.23 (5.33)
           FMLM, steps 1/2/4/8/32: 168.30 (5.17), 133.29 (5.25), 111.31 (5.26), 86.50 (5.36),
           45.09 (5.25). Data: about 20.

The two-stage method of the first version: --config=configs/owt.py:residual with
--workdir=runs/owt_residual, then :second_stage. Baselines on the same data and network: :mdlm, :duo
and :ar. After a comma, :pretrain,fast, our own recipe instead of the published one.

The files are found in the hub's cache, in $FLM_JAX_DATA/openwebtext or at
--config.data.options.path: Parquet, Arrow, or the original archives. The last 100,000 documents are
for validation. The official code also drops the remainder of every 1000 documents;
--config.data.drop_remainder_every=1000 does it here.
"""

from flm_jax.configs import common


def get_config(stage="pretrain"):
    stage, words = common.split_stage(stage, "fast")
    config = common.get_config(stage)
    config.data.update(name="openwebtext", length=1024)
    config.data.options.update(path="", valid_documents=100_000)
    config.tokenizer.name = "gpt2"
    config.tokenizer.options.update(folder="", download=True, pad=True)
    config.model.dtype = "bfloat16"
    # Official distillation and correction: batches of 128; the second stage: 512 again.
    batch = 128 if stage in ("distill", "residual") else 512
    config.train.update(batch_size=batch, steps=1_000_000)
    scratch = common.from_scratch(config)
    config.sampler.steps = (8, 32, 128) if scratch else (1, 2, 4, 8, 32)
    if config.sampler.name == "flow_map":
        config.sampler.gamma = 1.0
    common.finish(config, "runs/owt", words)
    return config
