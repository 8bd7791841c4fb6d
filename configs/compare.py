"""Methods compared on equal terms: what they have in common, for `flm compare`.

Command:   flm compare --config=configs/compare.py:addition --workdir=runs/addition
           flm compare --data=corpus.txt --methods=ar,mdlm,flm,fmlm --budget_minutes=30
           flm compare --config=configs/compare.py:stories --data=runs/stories_rows --seeds=1,2,3
Hardware:  addition: 2 CPU cores; the others: what the budget is worth on
Time:      flm compare --dry_run says it; addition: 20 minutes
Expected:  docs/comparing.md

After the colon goes a preset: text (your own: --data=TEXT), stories (rows that flm prepare --truth
made, --data=FOLDER), or a language whose truth is known: those of configs/proof.py, of which
addition is a smoke test. Any other config of a denoiser does as well (--config=lm1b): its text,
network, optimizer and batches are what the methods have in common.
"""

from flm_jax.configs import proof, stories, text_files
from flm_jax.errors import UserError

# What the command takes where nothing else is said, by preset.
DEFAULTS = {
    "addition": dict(seeds=(1,), budget_minutes=1.0, tune=False, evaluations=(1, 2, 8), points=2)
}
LANGUAGES = tuple(name for name, row in proof.LANGUAGES.items() if row.data == "synthetic")
PRESETS = ("text", "stories", *LANGUAGES)


def get_config(stage="text"):
    if stage not in PRESETS:
        raise UserError(
            f"configs/compare.py has no preset {stage!r}; write one of {', '.join(PRESETS)} after "
            "the colon"
        )
    if stage in LANGUAGES:
        config = proof.get_config(f"{stage},flm")
    elif stage == "stories":
        config = stories.get_config()
    else:
        config = text_files.get_config("small")
        config.loss.options = {}  # the recipe's given tokens are a method here
        config.data.length = 64
    config.stage = "pretrain"
    config.optim.schedule = "stable"
    config.sampler.update(name="euler", rounds=4, threshold=0.9)  # each method has its own
    config.sampler.update(num_samples=4, batch_size=256)
    return config
