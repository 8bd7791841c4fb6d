"""Sudoku: a puzzle is given, its only solution is written; right or wrong, nothing between.

Command:   flm train --config=sudoku:any_order,4x4 --workdir=runs/sudoku4
           flm prepare --config=sudoku       (9x9: draws 50,000 puzzles, about 8 minutes)
           flm train --config=sudoku:any_order --workdir=runs/sudoku
           flm solve --checkpoint=runs/sudoku4 --steps=1,4,16 --sampler=refinement \
               --rounds=16 --threshold=-1
Hardware:  4x4: 2 CPU cores; 9x9: one GPU (published size: 512 wide, 8 blocks, 20,000 steps of 256)
Time:      4x4: 10 minutes (limit: train.max_minutes); 9x9 was not trained with this code yet
Reached:   4x4, medium, 10 minutes on one core, 2026-11-30: 82.0, 97.7 and 99.6 % of 256 puzzles
           with held-out solutions by 1, 4 and 16 evaluations, --rounds=16 --threshold=-1
Published: accuracy on 2,000 9x9 puzzles, of FMLM+ with 1 to 81 fold speed-up over 81 evaluations
           (read off a figure; the difficulty is not stated): 50 to 8 % (docs/tasks.md)

After the colon go a stage (see common.py) and words: 4x4; easy, medium or hard (40, 35, 30 clues of
81; 10, 7, 4 of 16); grids, for solutions without a puzzle before them, of which any cells may be
given. A row is [BOS] puzzle [BOS] solution, the first half is given. Of the 288 grids of size 4 the
32 of the validation split occur nowhere in training.
"""

from flm_jax.configs import common

_DIFFICULTIES = ("easy", "medium", "hard")


def get_config(stage="pretrain"):
    stage, words = common.split_stage(stage, "4x4", "grids", "fast", *_DIFFICULTIES)
    config = common.get_config(stage)
    size = 4 if "4x4" in words else 9
    form = "grids" if "grids" in words else "pairs"
    difficulty = next((word for word in _DIFFICULTIES if word in words), "medium")
    length = size * (size + 1) * (1 if form == "grids" else 2)
    config.data.update(name="sudoku", length=length, packing="exact")
    config.data.options.update(size=size, difficulty=difficulty, form=form)
    config.tokenizer.name = "sudoku"
    config.evals = ("sudoku",)
    config.clock.name = "identity"
    common.give_tokens(config)
    # A row has a form; its places are not only relative.
    config.model.learned_positions = length
    if size == 9:
        config.model.update(width=512, depth=8, heads=8)
        config.train.update(batch_size=256, steps=20_000)
    else:
        config.data.options.update(train=8_192, valid=1_024)
        config.model.update(width=128, depth=4, heads=4, dropout=0.0)
        config.optim.update(learning_rate=1e-3, warmup_steps=100, ema_decay=0.999)
        config.train.update(
            batch_size=64,
            steps=6_000,
            max_minutes=10.0,
            log_every=50,
            eval_every=500,
            sample_every=0,
            save_every=1_000,
            eval_rows=256,
            eval_taus=(0.05, 0.25, 0.5, 0.75, 0.95),
        )
    config.sampler.update(num_samples=256, batch_size=256)
    common.finish(config, "runs/sudoku4" if size == 4 else "runs/sudoku", words)
    return config
