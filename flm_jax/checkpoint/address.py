"""gs://BUCKET/FOLDER or s3://BUCKET/FOLDER: a folder in a bucket, and what goes wrong there.

Only these schemes work: the library that writes arrays has drivers for no other.
"""

import collections.abc
import contextlib
import functools
import uuid
from typing import TYPE_CHECKING

from flm_jax.checkpoint import manifest, stores
from flm_jax.errors import UserError, first_line

if TYPE_CHECKING:
    import tensorstore


def is_address(path: object) -> bool:
    """Whether this is a place in a bucket; said of any path or text."""
    return str(path).startswith(tuple(f"{scheme}://" for scheme in stores.STORES))


def removal(place: str) -> list[str]:
    """The words of a command that removes a folder, which may be in a bucket."""
    scheme = place.partition("://")[0] if is_address(place) else ""
    return [*(stores.STORES[scheme].removal if scheme else ("rm", "-r")), place]


class Address:
    """A folder in a bucket.

    Raises UserError if the text is no such address.
    """

    def __init__(self, url: str):
        scheme, _, rest = url.rstrip("/").partition("://")
        self.bucket, _, self.prefix = rest.partition("/")
        if scheme not in stores.STORES:
            places = " and ".join(f"{known}://BUCKET/FOLDER" for known in stores.STORES)
            raise UserError(
                f"{url} is neither a local or mounted folder nor in a bucket that can be written "
                f"to, as {places} can; choose one of these"
            )
        if not self.bucket or not self.prefix:
            raise UserError(
                f"{url} names no folder in a bucket; write it like "
                f"{scheme}://{self.bucket or 'bucket'}/run"
            )
        if found := next((char for char in "*?[" if char in url), None):
            raise UserError(  # fsspec deletes what matches
                f"{url} has a {found} in its name, which the libraries for such places take for a "
                "pattern; choose a name without * ? ["
            )
        self._store = stores.STORES[scheme]
        self._root = f"{self.bucket}/{self.prefix}"
        self.url = f"{scheme}://{self._root}"

    @property
    def _fs(self) -> stores.FileSystem:
        return self._store.file_system(self.url)

    @functools.cached_property
    def store(self) -> "tensorstore.KvStore":
        """The objects below the folder by their names from there, for the library of arrays.

        It gives a request up in time, and can write on condition that nobody else has.
        """
        self._store.file_system(self.url)  # the sentence about a missing library comes first
        import tensorstore as ts

        spec = {**self._store.tensorstore_spec(self.bucket), "path": f"{self.prefix}/"}
        return ts.KvStore.open(spec).result(timeout=stores.PATIENCE_S)

    def check(self) -> None:
        """Raises UserError unless the bucket is there and can be written, read and deleted from.

        By all libraries that will do it: each looks for credentials by itself.
        """
        name = f".probe-{uuid.uuid4().hex}"
        with self.reaching("used"):
            fs = self._fs
            try:
                self._store.look_for(self.bucket, self.prefix)
            except FileNotFoundError as error:
                raise UserError(
                    f"{self.url}: there is no bucket {self.bucket}; make it, or check its name"
                ) from error
            self.store.write(name, b"probe").result(timeout=stores.PATIENCE_S)
            if fs.cat_file(f"{self._root}/{name}") != b"probe":
                raise OSError("what was written came back as something else")
            fs.rm_file(f"{self._root}/{name}")

    def names(self) -> list[str]:
        """What is directly in the folder, objects and folders; [] if nothing is."""
        self._fs.invalidate_cache()
        try:
            paths = self._fs.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        return [str(path).rstrip("/").rpartition("/")[2] for path in paths]

    @contextlib.contextmanager
    def reaching(self, what: str) -> collections.abc.Iterator[None]:
        """Makes a sentence of whatever these libraries raise."""
        try:
            yield
        except (UserError, manifest.Damaged):
            raise
        except Exception as error:
            line = first_line(error)
            if known := self._store.sentence(line):
                raise UserError(f"{self.url}: {known}") from error
            raise UserError(
                f"{self.url} cannot be {what} ({line}); the same command tries again"
            ) from error
