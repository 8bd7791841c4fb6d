"""The one finished run that the tests of training and of generating share."""

import pathlib

import pytest
import tiny

from flm_jax import config as config_lib
from flm_jax import experiment
from flm_jax.training import loop

_FINISHED: list[tuple[config_lib.Config, pathlib.Path]] = []


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> tuple[config_lib.Config, pathlib.Path]:
    """(config, workdir) of a complete run of 12 steps with checkpoints at 4, 8 and 12.

    A fixture that two modules import is set up twice, so the run is kept here.
    """
    if not _FINISHED:
        folder = tmp_path_factory.mktemp("finished")
        config = tiny.run_config(folder)
        config_lib.validate(config, experiment.tables())
        assert loop.train(config, folder / "run") == 0
        _FINISHED.append((config, folder / "run"))
    return _FINISHED[0]
