"""Files that are there whole or not at all."""

import contextlib
import os
import pathlib

from flm_jax.errors import UserError


def write_atomically(path: pathlib.Path, content: bytes | str) -> None:
    """Writes a file so that a kill leaves either the old or the new content, never half of it.

    The folder is made if missing. Text becomes UTF-8, with "?" for lone surrogates.

    Raises UserError if the file cannot be written; then the old one is as it was.
    """
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # two processes may write one file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free space or choose a folder that "
            "you can write to"
        ) from error
