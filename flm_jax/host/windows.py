"""What this toolkit does not do on Windows, said at once."""

import sys

from flm_jax.errors import UserError


def refuse(what: str) -> None:
    """UserError on Windows, where files are locked, replaced and processes ended in other ways.

    Reading a model and sampling from it need none of that.
    """
    if sys.platform == "win32":
        raise UserError(
            f"{what} is for Linux and macOS, on Windows use WSL; flm_jax.load and the "
            "commands generate, evaluate and convert work here"
        )
