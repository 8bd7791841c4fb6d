"""flm report --workdir=DIR [--open]"""

import argparse
import sys
import webbrowser

from flm_jax import report
from flm_jax.cli import flags as command_line
from flm_jax.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Write the report, print its path; return the exit code (2 for a user's mistake)."""
    parser = argparse.ArgumentParser(
        prog="flm report",
        description="Write report.html for a training run, finished or not.",
    )
    parser.add_argument("--workdir", required=True, help="the folder the run wrote")
    parser.add_argument(
        "--open",
        nargs="?",
        const="true",
        default="false",
        choices=["true", "false"],
        help="open the report in the browser (default: false)",
    )
    options = parser.parse_args(arguments)
    try:
        path = report.write(options.workdir)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(path)
    if options.open == "true":
        webbrowser.open(path.resolve().as_uri())
    return 0


if __name__ == "__main__":
    command_line.exit_with(main, needs_reader=False)
