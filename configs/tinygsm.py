"""TinyGSM: a question of school arithmetic is given, the Python program that answers it is written.

Command:   flm prepare --config=tinygsm --config.data.options.path=DIR
           flm train --config=tinygsm:any_order --workdir=runs/tinygsm \
               --config.data.options.path=DIR
           (DIR holds the Parquet files of https://huggingface.co/datasets/TinyGSM/TinyGSM)
Hardware:  several GPUs (published: small, length 512, batches of 512, 250,000 steps)
Time:      not trained with this code
Published: answers to the 1,319 GSM8K test problems, per cent right at 16 to 1 fold speed-up over
           512 evaluations (read off a figure): FMLM+ 0.4 to 13, distilled from masked diffusion 0.8
           to 20, started from it 2.6 to 28, masked diffusion itself 0.4 to 25 (docs/tasks.md)

The published models read SmolLM's 49,152 pieces and [PAD]; here it is GPT-2's vocabulary, so
numbers compare in kind only. A row is [BOS] question separator program [EOS] [PAD] ..., rows of
more than 512 tokens are left out; BOS, question and separator are given. For stages see common.py.
"""

from flm_jax.configs import common


def get_config(stage="pretrain"):
    stage, words = common.split_stage(stage, "fast")
    config = common.get_config(stage)
    config.data.update(name="tinygsm", length=512, packing="one_per_row_short")
    config.data.options.path = ""  # required: a folder, or a file, of questions with programs
    config.tokenizer.name = "gpt2"
    config.tokenizer.options.update(folder="", download=False)
    config.clock.name = "identity"
    common.give_tokens(config)
    config.model.update(common.PRESETS["small"], dtype="bfloat16")
    config.train.update(batch_size=512, steps=250_000)
    config.evals = ()
    common.finish(config, "runs/tinygsm", words)
    return config
