"""A local or mounted folder of checkpoints: the rename of a step's folder commits it."""

import collections.abc
import os
import pathlib
import shutil
from typing import Any

import jax

from flm_jax.checkpoint import manifest
from flm_jax.errors import UserError

_TEMPORARY = ".orbax-checkpoint-tmp"
ASIDE = "damaged-"
ASIDE_KEPT = 2  # for a look at what happened; more would fill the disk in the end


class Folder:
    """Where `Checkpoints` puts its steps: the local kind. `bucket.Bucket` is the other.

    Raises UserError for a path in which nothing could be saved.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path).absolute()  # orbax refuses relative paths
        if "\\" in self.path.as_posix():  # tensorstore would write below another folder
            raise UserError(
                f"the folder {self.path} has a backslash in its path, which the library that "
                "writes checkpoints takes for a slash; rename it, or give a link to it"
            )

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        if not self.path.is_dir():
            return []
        names = [path.name for path in self.path.iterdir() if path.is_dir()]
        return sorted(int(name) for name in names if name.isdecimal())

    def verify(self, step: int, items: collections.abc.Collection[str]) -> bool:
        """Compares items of a step with its manifest (raises Damaged); False if it has none."""
        return manifest.verify(self.path / str(step), items)

    def before_saving(self) -> None:
        """Called when orbax opens the place to save; here orbax itself removes what is left."""

    def options(
        self,
        saving: collections.abc.Callable[[], int | None],
        read_back: collections.abc.Callable[[os.PathLike], None],
    ) -> dict[str, Any]:
        """What orbax is told of this kind of place.

        Args:
          saving: gives the step being saved.
          read_back: raises Damaged unless a step, not committed yet, holds what it should.
        """
        from flm_jax.checkpoint.arrays import import_orbax

        ocp = import_orbax()

        def before_commit():
            """orbax calls this when all data is written, just before the rename."""
            if jax.process_index() == 0:
                written = self.path / f"{saving()}{_TEMPORARY}"
                read_back(written)
                manifest.write(written)

        return {
            "cleanup_tmp_directories": True,
            "async_options": ocp.options.AsyncOptions(post_finalization_callback=before_commit),
        }

    def set_aside(self, step: int) -> pathlib.Path:
        """Renames a damaged step, so that it is none any more; only the newest are kept."""
        aside = self.path / f"{ASIDE}{step}"
        shutil.rmtree(aside, ignore_errors=True)
        (self.path / str(step)).rename(aside)
        os.utime(aside)
        asides = sorted(self.path.glob(f"{ASIDE}*"), key=lambda path: path.stat().st_mtime)
        for path in asides[:-ASIDE_KEPT]:
            shutil.rmtree(path, ignore_errors=True)
        return aside
