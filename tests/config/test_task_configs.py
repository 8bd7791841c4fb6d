"""The configs of tasks: every stage is valid and is made for tokens that are given."""

import pytest

from flm_jax import config as config_lib
from flm_jax import experiment
from flm_jax.configs import common
from flm_jax.data.tasks.sudoku import row_length
from flm_jax.losses import LOSSES

STAGES = ("pretrain", "distill", *common.ANY_ORDER, "mdlm", "ar")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["sudoku", "tinygsm"])
def test_stages(name, stage):
    changes = {"teacher": "somewhere"} if stage == "distill" else {}
    config = config_lib.load(f"configs/{name}.py:{stage}", changes)
    config_lib.validate(config, experiment.tables())
    loss = LOSSES[config.loss.name](**config.loss.options)
    assert loss.keeps_prompts and (loss.needs.given or stage in ("mdlm", "ar"))
    assert config.data.packing in ("exact", "one_per_row_short")


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("", (9, "medium", "pairs")),
        (",hard", (9, "hard", "pairs")),
        (",4x4,easy", (4, "easy", "pairs")),
        (",grids,4x4", (4, "medium", "grids")),
    ],
)
def test_words_of_sudoku(words, options):
    data = config_lib.load(f"configs/sudoku.py:any_order{words}", {}).data
    assert tuple(data.options[key] for key in ("size", "difficulty", "form")) == options
    assert data.length == row_length(options[0], options[2])
