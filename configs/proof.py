"""Proof where the truth is known: synthetic languages, on which every sample is valid or not.

Command:   flm proof --workdir=runs/proof          (all of it, table and plot)
           python -m flm_jax.main --config=configs/proof.py:addition,flm --workdir=runs/add
Hardware:  2 CPU cores
Time:      smoke tests 1 to 5 minutes a run on one core, a large flow map 20
Expected:  see benchmarks/proof.md

The stage is LANGUAGE,METHOD[,SIZE]. Languages: addition3, brackets32 and large_grammar, which no
network can know by heart; grammar; and city_pairs, addition and brackets, smoke tests of at most
132 texts. sudoku4 is no language but a task: 4x4 puzzles of 7 clues are given, and solved.

Methods: flm (the denoiser), fmlm (its flow map by PSD; needs --config.teacher), fmlm_ema (the same,
targets by the EMA), fmlm_self, lsd, esd, residual and second_stage (other objectives); flm_given
(the denoiser, with given tokens in training) and any_order (a flow map that starts as it and takes
given tokens, too); with the budget of flm and fmlm together mdlm (masked diffusion), duo
(uniform-state diffusion, the steps of flm in duo_curriculum, a stage before it) and ar
(autoregressive). Sizes: default, and large with twice the width, four times the batch and twice the
steps of a flow map.
"""

from typing import NamedTuple

from flm_jax.configs import common
from flm_jax.errors import UserError


class Language(NamedTuple):
    """Rows that are trained on: data.length, options of the data set, its tokenizer.

    With the training steps of a denoiser and of a flow map, and the data set.
    """

    length: int
    options: dict[str, object]
    tokenizer: str
    denoiser_steps: int
    map_steps: int
    data: str = "synthetic"

    @property
    def asks(self) -> bool:
        """Whether the first part of every row is given, in training already."""
        return self.data == "sudoku"


SUDOKU = {"size": 4, "difficulty": "medium", "train": 65_536, "valid": 1_024}
LANGUAGES = {
    "city_pairs": Language(5, {}, "whitespace_words", 3_000, 4_500),
    "addition": Language(8, {}, "characters", 6_000, 4_500),
    "brackets": Language(14, {}, "characters", 4_000, 6_000),
    "grammar": Language(16, {}, "whitespace_words", 4_000, 3_000),
    "addition3": Language(14, {"documents": 300_000}, "characters", 12_000, 9_000),
    "brackets32": Language(34, {"documents": 100_000}, "characters", 8_000, 8_000),
    "large_grammar": Language(19, {"documents": 100_000}, "whitespace_words", 8_000, 8_000),
    "sudoku4": Language(40, SUDOKU, "sudoku", 8_000, 8_000, "sudoku"),
}
# Flow maps: learning rate, and the share of samples on the diagonal. A student that starts as its
# teacher knows the diagonal, so that most of its samples may go elsewhere; but at the high rate
# brackets come apart (benchmarks/proof.md).
FLOW_MAPS = {"city_pairs": (3e-3, 0.25)}
OTHERS = (1e-3, 0.5)
JUMPS = {"boundary_fraction": 0.25}
# loss, its options, sampler
METHODS = {
    "flm": ("flow_matching", {}, "euler"),
    "fmlm": ("psd", JUMPS, "flow_map"),
    "fmlm_ema": ("psd", JUMPS | {"target": "ema"}, "flow_map"),
    "fmlm_self": ("psd", JUMPS | {"on_diagonal": "data"}, "flow_map"),
    "lsd": ("lsd", {"boundary_fraction": 0.0}, "flow_map"),  # see losses/lsd.py
    "esd": ("esd", JUMPS, "flow_map"),
    "flm_given": ("flow_matching", {"given": "uniform"}, "euler"),
    "any_order": ("any_order", JUMPS | {"on_diagonal": "data"}, "flow_map"),
    "residual": ("residual", {}, "two_model"),
    "second_stage": ("second_stage", {}, "flow_map"),
    "mdlm": ("masked_diffusion", {}, "ancestral_masked"),
    "duo_curriculum": ("uniform_curriculum", {}, "ancestral_uniform"),
    "duo": ("uniform_diffusion", {}, "ancestral_uniform"),
    "ar": ("autoregressive", {}, "autoregressive"),
}
ONE_TIME = ("flm", "flm_given", "mdlm", "duo_curriculum", "duo", "ar")  # others are flow maps
# width, rows of a batch, factor on the training steps of a flow map
SIZES = {"default": (64, 64, 1), "large": (128, 256, 2)}


def get_config(stage="city_pairs,flm"):
    words = stage.split(",")
    language, method, size = [*words, "default"][:3] if len(words) in (2, 3) else ("", "", "")
    if language not in LANGUAGES or method not in METHODS or size not in SIZES:
        raise UserError(
            f"this config has no stage {stage!r}; write LANGUAGE,METHOD[,SIZE], "
            f"languages {', '.join(LANGUAGES)}, methods {', '.join(METHODS)}, "
            f"sizes {', '.join(SIZES)}"
        )
    width, batch_size, factor = SIZES[size]
    config = common.get_config()
    config.stage = method
    row = LANGUAGES[language]
    length, denoiser_steps, map_steps = row.length, row.denoiser_steps, row.map_steps * factor
    config.data.update(name=row.data, length=length, packing="one_per_row")
    config.data.options = dict(row.options)
    if row.asks:
        config.data.packing, config.clock.name = "exact", "identity"
    else:
        config.data.options.language = language
    config.tokenizer.name = row.tokenizer
    config.model.update(width=width, depth=3, heads=2, cond_dim=64, dropout=0.0, head_init="table")
    # These texts have a form; without it addition reaches 15 % instead of 41 % (proof.md).
    config.model.learned_positions = length
    config.optim.update(learning_rate=2e-3, warmup_steps=200, schedule="cosine", ema_decay=0.999)
    loss, loss_options, sampler = METHODS[method]
    steps = denoiser_steps if method in ("flm", "flm_given", "duo_curriculum") else map_steps
    if method in ("mdlm", "ar"):  # the budget of both stages
        steps = denoiser_steps + map_steps
    config.loss.name = loss
    config.loss.options = dict(loss_options)
    if row.asks:  # else the network cannot be asked
        common.give_tokens(config)
    config.train.update(
        batch_size=batch_size,
        steps=steps,
        log_every=100,
        eval_every=0,
        sample_every=0,
        save_every=3_000,
        keep_best=0,
        eval_rows=256,
        eval_taus=(0.1, 0.3, 0.5, 0.7, 0.9),
    )
    config.sampler.update(
        name=sampler, steps=(1, 2, 4, 8, 32, 128), num_samples=1024, batch_size=1024
    )
    config.evals = ("sudoku",) if row.asks else ("truth",)
    if method not in ONE_TIME:
        config.model.two_times = True
        config.init_from = "teacher"
        config.optim.learning_rate, diagonal = FLOW_MAPS.get(language, OTHERS)
        if "boundary_fraction" in loss_options:
            config.loss.options.diagonal_fraction = diagonal
    config.model.mask_token = method == "mdlm"
    if method == "ar":  # one evaluation for every token after the first
        config.model.causal = True
        config.sampler.steps = (length - 1,)
    return config
