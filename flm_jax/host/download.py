"""One file from the web: resumed where it broke off, retried, checked, and renamed when whole.

Tokenizers, data sets and shipped models use it.
"""

import dataclasses
import email.message
import hashlib
import http.client
import os
import pathlib
import random
import shutil
import sys
import time
import urllib.error
import urllib.request
from typing import BinaryIO

import tqdm

from flm_jax.errors import UserError
from flm_jax.host import folders, locks, progress

_CHUNK = 1 << 18
_HOPELESS = (400, 401, 403, 404, 405, 410, 451)
_AGENT = "flm_jax"  # some servers refuse the agent of Python's library
_BROKEN = (OSError, http.client.HTTPException)  # URLError and time-outs are OSErrors


@dataclasses.dataclass(frozen=True)
class Download:
    """A file of the web.

    Attributes:
      address: where it is.
      file: the name it gets.
      sha256: hex; "" if not known.
      size: bytes; 0 if not known.
    """

    address: str
    file: str
    sha256: str = ""
    size: int = 0


class _Again(Exception):
    """The connection broke; another attempt may go on from here."""


def fetch(
    download: Download,
    folder: str | os.PathLike,
    attempts: int = 6,
    wait: float = 1.0,
    timeout: float = 60.0,
) -> pathlib.Path:
    """Downloads into `folder`, unless the file is there; returns its path.

    What arrived is kept in FILE.part, also when the process is killed, and the next call goes on
    behind it. FILE appears only when size and SHA-256 are right.

    Args:
      attempts: connections in a row that bring nothing before it gives up.
      wait: seconds before the second attempt; doubled each time.
      timeout: seconds of silence that count as a broken connection.

    Raises:
      UserError: the address does not exist, the server or the connection fails, the file is not the
        published one, another process is downloading it, the disk is too small, or the folder
        cannot be written.
    """
    path = folders.expanded(folder) / download.file
    if path.is_file():
        return path
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("ab")
    except OSError as error:
        raise _unwritable(part, error) from error
    with file:
        if not locks.take(file, "let no other process download it meanwhile"):
            raise UserError(f"another process is downloading {path}; wait until it is done")
        if path.is_file():  # the other process was just ready
            return path
        _fill(download, file, part, attempts, wait, timeout)
        _check(download, part)
        part.rename(path)
    _tag_file(part).unlink(missing_ok=True)
    return path


def _fill(
    download: Download,
    file: BinaryIO,
    part: pathlib.Path,
    attempts: int,
    wait: float,
    timeout: float,
) -> None:
    """Appends to the open file until it is whole."""
    failures = 0
    options = {"unit": "B", "unit_scale": True, "delay": progress.DELAY}
    with progress.bar(desc=f"downloading {download.file}", **options) as bar:
        while True:
            before = file.tell()
            try:
                _once(download, file, part, bar, timeout)
                return
            except _Again as error:
                failures = 1 if file.tell() > before else failures + 1
                if failures >= attempts:
                    kept = f", {file.tell():,} bytes are kept in {part}" if file.tell() else ""
                    if not kept:
                        part.unlink(missing_ok=True)
                    raise UserError(
                        f"cannot download {download.address}: {error} ({failures} attempts{kept}); "
                        "try again later, or get the file in another way and put it there as "
                        f"{part.with_name(download.file)}"
                    ) from None
                reason = str(error)
            pause = wait * 2 ** (failures - 1)
            print(f"{download.file}: {reason}; trying again in {pause:.0f} s", file=sys.stderr)
            time.sleep(pause * random.uniform(0.75, 1.25))


def _once(
    download: Download, file: BinaryIO, part: pathlib.Path, bar: tqdm.tqdm, timeout: float
) -> None:
    """One connection; returns when the file is whole, raises _Again when it broke."""
    start = file.tell()
    if download.size and start == download.size:
        return
    if download.size and start > download.size:
        start = _empty(file)
    headers = {"User-Agent": _AGENT, "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        tag = _tag_file(part)
        if tag.is_file():  # the server sends all of it if the file is another one by now
            headers["If-Range"] = tag.read_text()
    request = urllib.request.Request(download.address, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            total = _begin(answer.status, answer.headers, file, part, start)
            _check_space(part, (total or download.size) - file.tell())
            bar.total = total or download.size or None
            bar.update(file.tell() - bar.n)
            _copy(answer, file, part, bar)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing behind what is here: it is whole, or not a part of this
            total = _last_number(error.headers.get("Content-Range"))
            if total == start:
                return
            _empty(file)
            raise _Again("the server has another file than before") from None
        if error.code in _HOPELESS:
            raise UserError(
                f"the server answered {error.code} {error.reason} for {download.address}; get the "
                f"file in another way and put it there as {part.with_name(download.file)}"
            ) from None
        raise _Again(f"the server answered {error.code} {error.reason}") from None
    except _BROKEN as error:
        raise _Again(f"the connection failed ({getattr(error, 'reason', None) or error})") from None
    if total is not None and file.tell() < total:
        raise _Again(f"the connection ended after {file.tell():,} of {total:,} bytes")


def _begin(
    status: int, headers: email.message.Message, file: BinaryIO, part: pathlib.Path, start: int
) -> int | None:
    """Makes the file as long as what the server goes on from; returns the size of the whole."""
    length = headers.get("Content-Length", "")
    if status == 206 and headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        return _last_number(headers.get("Content-Range"))
    if status == 206:
        _empty(file)
        raise _Again("the server sent another part than was asked for")
    _empty(file)
    tag = headers.get("ETag", "")
    if tag and not tag.startswith("W/"):
        _tag_file(part).write_text(tag)
    else:
        _tag_file(part).unlink(missing_ok=True)
    return int(length) if length.isdigit() else None


def _check_space(part: pathlib.Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise UserError(
            f"{part.name.removesuffix('.part')} needs {needed / 1e6:,.0f} MB more, but the disk of "
            f"{part.parent} has {free / 1e6:,.0f} MB free; free some space, or set $FLM_JAX_CACHE "
            "to a folder with more"
        )


def _copy(
    answer: http.client.HTTPResponse, file: BinaryIO, part: pathlib.Path, bar: tqdm.tqdm
) -> None:
    while True:
        data = answer.read1(_CHUNK)  # what has arrived is kept if the rest does not come
        if not data:
            break
        try:
            file.write(data)
            file.flush()
        except OSError as error:
            raise _unwritable(part, error) from error
        bar.update(len(data))


def _check(download: Download, part: pathlib.Path) -> None:
    """UserError, and the wrong file is gone, unless size and hash are the published ones."""
    size = part.stat().st_size
    wrong = ""
    if download.size and size != download.size:
        wrong = f"has {size:,} bytes instead of {download.size:,}"
    elif download.sha256:
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != download.sha256:
            wrong = f"has the SHA-256 {found[:16]}... instead of {download.sha256[:16]}..."
    if wrong:
        part.unlink()
        _tag_file(part).unlink(missing_ok=True)
        raise UserError(
            f"{download.address} is not the published file: it {wrong}; it was deleted, try again "
            "or get the file in another way"
        )


def _empty(file: BinaryIO) -> int:
    file.seek(0)
    file.truncate()
    return 0


def _tag_file(part: pathlib.Path) -> pathlib.Path:
    return part.with_name(part.name + ".etag")


def _last_number(content_range: str | None) -> int | None:
    """1000 of "bytes 10-999/1000"."""
    text = (content_range or "").rpartition("/")[2]
    return int(text) if text.isdigit() else None


def _unwritable(path: pathlib.Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write {path}: {error.strerror or error}; free space, or set $FLM_JAX_CACHE to a "
        "folder that you can write to"
    )
