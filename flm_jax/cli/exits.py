"""How a command ends: with its exit code, and with a sentence for whatever the user can change."""

import sys
from collections.abc import Callable
from typing import NoReturn

from flm_jax.cli import streams
from flm_jax.errors import UserError
from flm_jax.host.folders import no_home


def exit_with(command: Callable[[], int | None], needs_reader: bool = True) -> NoReturn:
    """Runs a command to its end and exits with the code that it returns; None is 0.

    A UserError is printed as "error: ..." on stderr, exit code 2 (`errors.TryAgain`: 75), no
    traceback. Ctrl-C exits with 130. Text that standard output cannot say becomes "?". What
    standard error does not take is dropped.

    Args:
      needs_reader: end with 141, as others do, when the reader of standard output has gone, and
        with 2 when its disk is full. False for work that is in files, such as training: it goes on,
        and the exit code is that of the work.
    """
    streams.protect(needs_reader)
    try:
        code = _code_of(command)
        sys.stdout.flush()
    except streams.NobodyReads:
        code = 141
    except UserError as error:  # of the flush
        code = _say(error)
    sys.exit(code)


def _code_of(command: Callable[[], int | None]) -> int | str:
    try:
        return command() or 0
    except SystemExit as asked:  # of a library; what it printed is not flushed yet
        return asked.code or 0
    except UserError as error:
        return _say(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except RuntimeError as error:
        if "home directory" not in str(error):  # how `pathlib` says that ~ is nowhere
            raise
        print(f"error: {no_home()}", file=sys.stderr)
        return 2


def _say(error: UserError) -> int:
    first, *others = str(error).splitlines() or [""]
    print("\n".join([f"error: {first}", *(f"       {line}" for line in others)]), file=sys.stderr)
    return error.exit_code
