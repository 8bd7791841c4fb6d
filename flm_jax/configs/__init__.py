"""The experiments, `flm_jax.configs.quickstart` and so on: the files of the folder configs/.

They lie at the top of the repository, beside this package. A wheel has them here, in place of this
file (`package_dir` in setup.cfg).
"""

import pathlib

__path__ = [str(pathlib.Path(__file__).resolve().parents[2] / "configs")]
