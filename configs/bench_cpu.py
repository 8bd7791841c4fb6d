"""The benchmark of the training step: V = 30522, D = 256, 6 layers, 4 heads, B = 32, L = 128.

Command:   flm benchmark train --config=configs/bench_cpu.py --space=both --json
           flm benchmark sample --config=configs/bench_cpu.py --space=both --json
Hardware:  2 CPU cores, 6 GB of memory (the one-hot baseline needs 5 of them)
Time:      about 5 minutes
Expected:  see benchmarks/hot_path.md

The benchmark draws its tokens at random; the corpus and tokenizer named here only say which shape
this is (LM1B's, with a network that two cores can move), and would train it.
"""

from flm_jax.configs import common


def get_config(stage="pretrain"):
    config = common.get_config(stage)
    config.data.update(name="lm1b", length=128)
    config.tokenizer.name = "bert-base-uncased"  # 30522 entries
    config.model.update(width=256, depth=6, heads=4, cond_dim=128, dropout=0.0)
    config.train.batch_size = 32
    return config
