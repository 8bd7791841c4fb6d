"""Files that are there whole or not at all."""

import contextlib
import os
import pathlib
import re
import stat
import tempfile
from collections.abc import Iterator

from flm_jax.errors import UserError

# What these mean is open already, perhaps as a file in which there is something: they are added to.
_DESCRIPTORS = re.compile(r"/dev/(stdout|stderr|fd/\d+)|/proc/(self|\d+)/fd/\d+")


def write_atomically(path: pathlib.Path, content: bytes | str) -> None:
    """Writes a file so that a kill leaves either the old or the new content, never half of it.

    The folder is made if missing. Text becomes UTF-8, with "?" for lone surrogates. A link stays
    one, and what it points to is replaced. What is not a regular file (a device, a pipe, a
    descriptor like /dev/stdout) cannot be replaced: the content is written into it.

    Raises UserError if the file cannot be written; then the old one is as it was.
    """
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    with _sentence(path):
        if _is_written_into(path):
            with open(path, "ab") as file:
                file.write(data)
            return
        target, temporary = _places(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def check_writable(path: pathlib.Path) -> None:
    """Raises UserError if `write_atomically` cannot write there as things are; changes nothing.

    To be asked before hours of work. A disk that will be full by then is not foreseen.
    """
    with _sentence(path):
        if _is_written_into(path):
            if not stat.S_ISFIFO(os.stat(path).st_mode):
                open(path, "ab").close()  # a folder or a socket says so now
            elif not os.access(path, os.W_OK):  # to open it would wait for a reader and end him
                raise PermissionError(None, "Permission denied")
            return
        _, probe = _places(path)
        folder = next(parent for parent in probe.parents if os.path.exists(parent))
        probe = folder / probe.name
        probe.touch()
        probe.unlink()


def output(option: str, given: str) -> pathlib.Path:
    """The file that an option of a command names; UserError, before any work, if it cannot be."""
    path = pathlib.Path(given).expanduser()
    # Not pathlib's is_dir, which raises an error for a name that is too long.
    if os.path.isdir(path):
        raise UserError(f"{option}={given} is a folder; give the name of a file")
    if not os.path.isdir(path.absolute().parent):
        raise UserError(f"{option}={given}: there is no folder {path.parent}; make it first")
    check_writable(path)
    return path


def check_new(folder: pathlib.Path) -> None:
    """UserError unless `appearing` can make a folder there: it is absent, or there and empty."""
    if os.path.exists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists already; choose another destination or remove it first")
    check_writable(folder / "probe" if os.path.isdir(folder) else folder)


@contextlib.contextmanager
def appearing(destination: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty folder that becomes ``destination`` when the block ends well, else vanishes."""
    destination = pathlib.Path(os.path.realpath(destination))  # what a link points to
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{destination.name}-", dir=destination.parent, ignore_cleanup_errors=True
        ) as scratch:
            folder = pathlib.Path(scratch) / "whole"  # its mode follows the umask, unlike scratch's
            folder.mkdir()
            yield folder
            os.rename(folder, destination)
    except OSError as error:
        raise UserError(
            f"cannot write {destination} ({error.strerror or error}); free space or choose "
            "another destination"
        ) from None


def _is_written_into(path: pathlib.Path) -> bool:
    """Whether what is there is not a regular file; a folder is one, so that opening it says so."""
    if _DESCRIPTORS.fullmatch(str(path.absolute())):
        return True
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return False


def _places(path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """(where the content goes, the file beside it that becomes it)."""
    target = pathlib.Path(os.path.realpath(path))
    # Two processes may write one file.
    return target, target.with_name(f"{target.name}.{os.getpid()}.tmp")


@contextlib.contextmanager
def _sentence(path: pathlib.Path):
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free space or choose a folder that "
            "you can write to"
        ) from error
