"""Your own text: .txt or JSON lines, plain or .gz; a file, a folder, a glob, or several.

Command:   python -m flm_jax.main --config=configs/text_files.py:small --workdir=runs/mine \
               --config.data.options.path=corpus.txt
Hardware:  small (128 wide, 4 blocks, batches of 32): a laptop; without that word (256 wide, 8
           blocks, batches of 128, 20,000 steps): a GPU, for on two cores it takes more than a day
Time:      small: 30 minutes (limit: train.max_minutes), 6,000 steps or fewer. A step of 32 x 64
           pieces took 0.56 s of processor time on 2026-11-29, so 3 or 4 a second are possible on
           two cores of one's own; it was 1 a second on two cores shared with much other work
Expected:  depends on the text; see benchmarks/corpora.md for a model of this size

After the colon go a stage and words, with commas between them, for example text_files.py:ar,small.
"small" comes with our own recipe (given tokens, so that the model continues prompts), and "fast" is
that recipe alone. The word "characters" spells instead of writing pieces of words, which needs less
text. The stage "distill" with --config.teacher=runs/mine and another --workdir makes a flow map of
the trained model (give it the same words), which writes in one step; so do the stages residual
(with the same teacher) and then second_stage (its teacher is the residual run). The stages mdlm
(masked diffusion), duo (uniform diffusion) and ar (autoregressive) are baselines. Other useful
values: --config.data.length, --config.tokenizer.options.vocab_size, --config.train.steps,
--config.train.max_minutes, and for code or verse --config.data.options.keep_indentation=True.
"""

from flm_jax.configs import common


def get_config(stage="pretrain"):
    config = small("text_files", stage)
    config.data.options.update(
        path="",  # required: training text
        valid_path="",  # "" = one twentieth of the documents of path
        test_path="",  # likewise, but no test split where valid_path is given
        document="line",  # of .txt files: line, paragraph, file, or a separator
        json_key="text",  # where a line of JSON has its text
    )
    return config


def small(data_set, stage):
    """A model on a data set of a few megabytes, in pieces of words or in characters."""
    stage, words = common.split_stage(stage, "characters", "small", "fast")
    config = common.get_config(stage)
    config.data.name = data_set
    if "characters" in words:
        config.data.length = 128
        config.tokenizer.name = "characters"
    else:
        config.data.length = 64
        config.tokenizer.name = "sentencepiece"
        config.tokenizer.options.vocab_size = 2048
    config.model.update(common.PRESETS["tiny"], dtype="auto")
    config.optim.update(warmup_steps=500, ema_decay=0.999)
    config.train.update(
        batch_size=128,
        steps=20_000,
        log_every=50,
        eval_every=500,
        sample_every=2_000,
        save_every=1_000,
        eval_rows=256,
    )
    if "small" in words:
        common.small(config)
    common.finish(config, words=words)
    return config
