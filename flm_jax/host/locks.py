"""Keeping other processes away from a file, where the file system can."""

from typing import IO

from absl import logging


def take(file: IO, advice: str, wait: bool = False) -> bool:
    """Takes the lock of an open file, which the system frees when it is closed or the process dies.

    Some file systems of several machines have no locks (ENOLCK, EOPNOTSUPP, ENOSYS), and neither
    has a system without flock: there it warns, with ``advice`` on what the user has to take care
    of, and goes on.

    Args:
      wait: until it is free.

    Returns False if another process has the lock.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (OSError, ImportError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        logging.warning("%s cannot be locked (%s): %s", file.name, reason, advice)
    return True
