"""Standard output and error that end no work: another encoding, a reader that left, a full disk.

Text that the encoding of standard output cannot say is printed with replacement characters. What
goes to standard error (progress, warnings) and cannot be written is dropped. What goes to standard
output and cannot be written ends a command that only prints, and not one whose work is in files.
"""

import io
import os
import sys
from typing import TextIO

from flm_jax.errors import UserError


class NobodyReads(Exception):
    """The reader of standard output, such as `head`, has gone."""


class _Descriptor(io.FileIO):
    """An open descriptor; what cannot be written to it is dropped, after an error if `strict`."""

    def __init__(self, number: int, strict: bool):
        super().__init__(number, "w", closefd=False)
        self.strict = strict

    def write(self, data) -> int | None:
        try:
            return super().write(data)
        except BlockingIOError:
            raise
        except OSError as error:
            gone = isinstance(error, BrokenPipeError)
            if gone or self.strict:  # the interpreter tries once more when it ends
                _to_nowhere(self.fileno())
            if not self.strict:
                return len(data)
            if gone:
                raise NobodyReads from None
            raise UserError(
                f"cannot write to standard output: {error.strerror}; free space, or send it "
                "elsewhere"
            ) from None


def protect(needs_reader: bool) -> None:
    """Replaces sys.stdout and sys.stderr of a process; streams that a caller put there stay.

    Args:
      needs_reader: standard output that cannot be written raises `NobodyReads` (the reader has
        gone) or UserError (the disk is full) at the next flush; otherwise it is dropped.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:  # closed by who started us, as `>&-` does
            setattr(sys, name, _closed(number))
    if sys.stdout is sys.__stdout__:
        sys.stdout = guarded(sys.stdout, strict=needs_reader)
    if sys.stderr is sys.__stderr__:
        sys.stderr = guarded(sys.stderr, strict=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def guarded(stream: TextIO, strict: bool) -> TextIO:
    """A stream to the same place that raises as `protect` says; the console of Windows as it is."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    below = stream.buffer
    unbuffered = not isinstance(below, io.BufferedWriter)  # PYTHONUNBUFFERED=1
    if not isinstance(below if unbuffered else below.raw, io.FileIO):
        return stream
    stream.flush()
    descriptor = _Descriptor(stream.fileno(), strict)
    return io.TextIOWrapper(
        descriptor if unbuffered else io.BufferedWriter(descriptor),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=unbuffered,
    )


def _closed(number: int) -> TextIO:
    """A stream to nowhere, at its usual number, which the next opened file would get otherwise."""
    try:
        os.fstat(number)
    except OSError:
        _to_nowhere(number)
    return open(os.devnull, "w", encoding="utf-8")


def _to_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)
