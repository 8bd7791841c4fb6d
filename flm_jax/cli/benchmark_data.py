"""How fast batches come from prepared rows, and training takes them.

    flm benchmark data --config=configs/text8.py:pretrain,small
    flm benchmark data FOLDER --batch_size=64 --seconds=5

With --config the rows, the batch size and the loaders are those of the config, and in the same run
`flm benchmark train` measures the training step of the config in a process of its own. FOLDER is
one that `flm prepare` made; then there is no model.
"""

import dataclasses

from flm_jax import config as config_lib
from flm_jax.cli.command import Command
from flm_jax.cli.options import Configured
from flm_jax.errors import UserError
from flm_jax.host import folders
from flm_jax.knobs import knob


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Configured):
    folder: str = knob("", "prepared rows, instead of --config", word=True)
    batch_size: int = knob(64, "rows per batch", at_least=1)
    seconds: float = knob(5.0, "how long to read", at_least=0.0)
    loaders: int = knob(0, "worker processes, data.num_workers of a config", at_least=0)


def run(options: Options) -> None:
    from flm_jax.data import rows, speed

    if bool(options.folder) == options.config.given:
        raise UserError("give either one folder that flm prepare made, or --config=FILE")
    if options.folder:
        for one in rows.prepared_below(folders.expanded(options.folder)):
            speed.report(one, options.batch_size, options.seconds, options.loaders)
        return
    settings = config_lib.to_dict(options.config.value)
    speed.beside_training(settings, options.config.words(), options.seconds)


COMMAND = Command(__doc__, Options, run)
