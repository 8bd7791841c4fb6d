"""The report of a run: one self-contained ``report.html`` in the workdir, no network needed.

    flm report --workdir=DIR [--open]

Works on unfinished runs too: it shows what is there and says what is missing.
"""

import os
import pathlib

from flm_jax.host import files
from flm_jax.report.page import render
from flm_jax.report.workdir import load

FILE_NAME = "report.html"


def write(workdir: str | os.PathLike) -> pathlib.Path:
    """Write report.html into the workdir (atomically) and return its path.

    Raises UserError where the folder holds nothing of a run or cannot be written.
    """
    path = pathlib.Path(workdir).expanduser() / FILE_NAME
    page = render(load(workdir))
    files.write_atomically(path, page)
    return path
