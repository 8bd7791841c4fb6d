"""The exceptions with one sentence for people: tools print it and exit with its code."""

from typing import ClassVar


class UserError(Exception):
    """A mistake in a config, path, file, checkpoint, tokenizer, prompt or flag.

    The message is one clear sentence with the offending value and the remedy. Command-line tools
    print it without a traceback and exit with code 2; in Python it is raised as it is.
    """

    exit_code: ClassVar[int] = 2


class TryAgain(UserError):
    """What the same command, given again, may get over: a worker killed, a device that failed.

    Tools exit with 75, "temporary failure", which launchers answer with a restart.
    """

    exit_code: ClassVar[int] = 75


def first_line(error: BaseException) -> str:
    """An exception of others in one line: "OSError: [Errno 28] No space left on device"."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
