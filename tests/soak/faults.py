"""What goes wrong on purpose: damage to checkpoints, and a disk without room."""

import os
import pathlib
import random
import subprocess

BALLAST = "ballast"


def damage(folder: pathlib.Path, draw: random.Random) -> str:
    """Spoils one file of a step so that its numbers are wrong or gone; returns what it did.

    A file of less than a step's smallest array is left alone: some of orbax's own files are empty.
    """
    files = sorted(p for p in folder.glob("*/**/*") if p.is_file() and p.stat().st_size > 100)
    path = draw.choice(files)
    size = path.stat().st_size
    how = draw.choice(("flip", "truncate", "delete"))
    if how == "flip":
        content = bytearray(path.read_bytes())
        content[draw.randrange(size)] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    elif how == "truncate":
        os.truncate(path, draw.randrange(size))
    else:
        path.unlink()
    return f"{how} {folder.name}/{path.relative_to(folder)}"


def quota_refusal() -> str:
    """Why no small disk can be mounted here; '' if it can."""
    try:
        tried = subprocess.run(
            ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=64k none /mnt"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = tried.stderr.strip().splitlines() or [f"exit code {tried.returncode}"]
    return "" if tried.returncode == 0 else lines[0]


def fill(disk: pathlib.Path, leave: int) -> None:
    """Takes all room of a disk except ``leave`` bytes."""
    room = os.statvfs(disk)
    size = room.f_bavail * room.f_frsize - leave
    with (disk / BALLAST).open("wb") as file:
        while size > 0:
            size -= file.write(bytes(min(size, 1 << 16)))


def empty(disk: pathlib.Path) -> None:
    """Gives the room back."""
    (disk / BALLAST).unlink(missing_ok=True)
