"""Trains a tiny model while killing it, damaging its checkpoints and filling its disk.

    python -m tests.soak --kills=50 --minutes=20

Ends by itself after so many kills or minutes. Then the run is completed, an uninterrupted run does
the same steps, and both must agree: the same parameters bit for bit, every data row used once an
epoch, and every save that was reported restorable until it was deleted by its policy or damaged on
purpose. Writes result.json to --workdir; exit code 0 if all is well, 1 if not.
"""

import json
import os
import pathlib
import shutil
import sys
import tempfile

from absl import flags
from tests.soak import faults, kills

from flm_jax.cli import flags as command_line
from flm_jax.errors import UserError

KILLS = flags.DEFINE_integer("kills", 50, "SIGKILLs and SIGTERMs in all", lower_bound=1)
MINUTES = flags.DEFINE_float("minutes", 20.0, "no new fault after this time", lower_bound=0.1)
WORKDIR = flags.DEFINE_string("workdir", "", "new or empty folder ('' = a temporary one)")
SEED = flags.DEFINE_integer("seed", 1, "which moments and faults", lower_bound=0)
INSIDE = flags.DEFINE_boolean("inside", False, "used by the command itself: the disk is private")

_QUOTA = "size=8m"


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; options are written --name=value")
    given = WORKDIR.value or tempfile.mkdtemp(prefix="flm_jax_soak_")
    folder = pathlib.Path(given).expanduser().absolute()
    if INSIDE.value:
        return _inside(folder, refusal="")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--workdir={folder} is not empty; give a new folder")
    (folder / "run" / "checkpoints").mkdir(parents=True)
    refusal = faults.quota_refusal()
    if refusal:
        print(f"without a full disk: no small disk can be mounted here ({refusal})")
        return _inside(folder, refusal)
    mount = f'mount -t tmpfs -o {_QUOTA} none "$0" && exec "$@"'
    command = [
        *("unshare", "-rm", "sh", "-c", mount, str(folder / "run" / "checkpoints")),
        *(sys.executable, "-m", "tests.soak", "--inside", f"--workdir={folder}"),
        *(f"--kills={KILLS.value}", f"--minutes={MINUTES.value}", f"--seed={SEED.value}"),
    ]
    os.execvp(command[0], command)


def _inside(folder: pathlib.Path, refusal: str) -> int:
    result = kills.soak(folder, KILLS.value, MINUTES.value, SEED.value, refusal)
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    passed = result["passed"]
    if passed and not WORKDIR.value:
        shutil.rmtree(folder, ignore_errors=True)
    print(
        f"soak {'PASSED' if passed else 'FAILED'}: {result['kills']} kills in "
        f"{result['minutes']:g} minutes; "
        + ("same parameters, every row once, no reported save lost" if passed
           else "; ".join(result["problems"]) + f"; see {folder}/sessions.log")
    )  # fmt: skip
    return 0 if passed else 1


if __name__ == "__main__":
    command_line.run_main(main, needs_reader=False)
