"""Prints the requirements of an extra of setup.cfg, one a line: `python .ci/extra.py docs`.

pip installs an extra only together with the package and all its libraries, which the site does not
need.
"""

import configparser
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def requirements(extra: str) -> list[str]:
    """The requirements of an extra; KeyError if setup.cfg has no such one."""
    found = configparser.ConfigParser(interpolation=None)
    found.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = found["options.extras_require"][extra].splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1])))
