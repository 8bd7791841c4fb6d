"""The trained models that come with the package, each a folder as `flm export --format=hub` writes.

`flm_jax.load("stories")` and `--checkpoint=stories` read them. configs/shipped.py trained them;
benchmarks/shipped.md says how well they write.
"""

import pathlib

_HERE = pathlib.Path(__file__).parent


def names() -> list[str]:
    """What can be asked for."""
    return sorted(found.parent.name for found in _HERE.glob("*/config.json"))


def find(path: str | pathlib.Path) -> pathlib.Path | None:
    """The folder of a shipped model; None for other names, and where the user has such a path."""
    here = pathlib.Path(path)
    return _HERE / here if str(path) in names() and not here.exists() else None
