"""Numbered folders where nothing can be renamed: a step is one of them with a manifest in it."""

from flm_jax.checkpoint import manifest
from flm_jax.checkpoint.stores import FileSystem
from flm_jax.errors import UserError


def refuse_pattern(setting: str, url: str) -> None:
    """Raises UserError if fsspec would take a place for a pattern: it deletes what matches."""
    if found := next((char for char in "*?[" if char in url), None):
        raise UserError(
            f"{setting}={url} has a {found} in its name, which the libraries for such places take "
            "for a pattern; choose a name without * ? ["
        )


class NumberedFolders:
    """What `Bucket` and `Mirror` have in common: an fsspec file system and a path in it."""

    url: str
    _root: str
    _fs: FileSystem

    def steps(self) -> list[int]:
        """Steps that are there whole, oldest first."""
        return [n for n in self._numbered() if self._fs.exists(self._at(n, manifest.MANIFEST))]

    def _at(self, step: int, name: str = "") -> str:
        return f"{self._root}/{step}" + (f"/{name}" if name else "")

    def _numbered(self) -> list[int]:
        return sorted(int(name) for name in self._names() if name.isdecimal())

    def _names(self) -> list[str]:
        self._fs.invalidate_cache()
        try:
            paths = self._fs.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        return [str(path).rstrip("/").rpartition("/")[2] for path in paths]

    def _refuse_foreign(self, setting: str, owner: str) -> None:
        """Raises UserError if there are steps, but not the file ``owner`` that says whose."""
        if numbered := self._numbered():
            raise UserError(
                f"{setting}={self.url} holds {min(numbered)} and other numbered folders but no "
                f"{owner}: they are not of this run; choose an empty place"
            )
