"""Look at text as models get it: amounts, tokens, statistics, examples.

    flm inspect --config=configs/quickstart.py --rows=3 --split=train
    flm inspect FOLDER --html=page.html

FOLDER is one that `flm prepare` made, or the --data_dir that holds several.
"""

import dataclasses

from flm_jax import config as config_lib
from flm_jax.cli.command import Command
from flm_jax.cli.options import Configured
from flm_jax.errors import UserError
from flm_jax.host import files, folders
from flm_jax.knobs import knob


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Configured):
    folder: str = knob("", "prepared rows, instead of --config", word=True)
    rows: int = knob(3, "packed rows to show", at_least=0)
    split: str | None = knob(None, "the split that the rows are taken from; train by default")
    html: str = knob("", "also write a page with pictures to this file")


def run(options: Options) -> None:
    from flm_jax.data import inspect

    page = files.output("--html", options.html) if options.html else None
    if options.folder and options.config.given:
        raise UserError(f"give either the folder {options.folder} or --config, not both")
    if options.folder:
        folder = folders.expanded(options.folder)
        lines = inspect.of_folders(folder, options.split, options.rows, page)
    elif options.config.given:
        settings = config_lib.to_dict(options.config.value)
        lines = inspect.of_config(settings, options.split or "train", options.rows, page)
    else:
        raise UserError("nothing to look at; give a folder that flm prepare made, or --config=FILE")
    for line in lines:
        print(line)


COMMAND = Command(__doc__, Options, run)
