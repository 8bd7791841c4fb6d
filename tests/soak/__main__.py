"""Trains a tiny model while killing it, damaging its checkpoints and filling its disk.

    python -m tests.soak --kills=50 --minutes=20

Ends by itself after so many kills or minutes. Then the run is completed, an uninterrupted run does
the same steps, and both must agree: the same parameters bit for bit, every data row used once an
epoch, and every save that was reported restorable until it was deleted by its policy or damaged on
purpose. Writes result.json to --workdir; exit code 0 if all is well, 1 if not.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import sys
import tempfile

from tests.soak import faults, kills

from flm_jax import cli
from flm_jax.cli.command import Command
from flm_jax.errors import UserError
from flm_jax.knobs import knob

_QUOTA = "size=8m"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    kills: int = knob(50, "SIGKILLs and SIGTERMs in all", at_least=1)
    minutes: float = knob(20.0, "no new fault after this time", at_least=0.1)
    workdir: str = knob("", "new or empty folder ('' = a temporary one)")
    seed: int = knob(1, "which moments and faults", at_least=0)
    inside: bool = knob(False, "used by the command itself: the disk is private")


def run(options: Options) -> int:
    given = options.workdir or tempfile.mkdtemp(prefix="flm_jax_soak_")
    folder = pathlib.Path(given).expanduser().absolute()
    if options.inside:
        return _inside(options, folder, refusal="")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--workdir={folder} is not empty; give a new folder")
    (folder / "run" / "checkpoints").mkdir(parents=True)
    refusal = faults.quota_refusal()
    if refusal:
        print(f"without a full disk: no small disk can be mounted here ({refusal})")
        return _inside(options, folder, refusal)
    mount = f'mount -t tmpfs -o {_QUOTA} none "$0" && exec "$@"'
    command = [
        *("unshare", "-rm", "sh", "-c", mount, str(folder / "run" / "checkpoints")),
        *(sys.executable, "-m", "tests.soak", "--inside", f"--workdir={folder}"),
        *(f"--kills={options.kills}", f"--minutes={options.minutes}", f"--seed={options.seed}"),
    ]
    os.execvp(command[0], command)


def _inside(options: Options, folder: pathlib.Path, refusal: str) -> int:
    result = kills.soak(folder, options.kills, options.minutes, options.seed, refusal)
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    passed = result["passed"]
    if passed and not options.workdir:
        shutil.rmtree(folder, ignore_errors=True)
    print(
        f"soak {'PASSED' if passed else 'FAILED'}: {result['kills']} kills in "
        f"{result['minutes']:g} minutes; "
        + ("same parameters, every row once, no reported save lost" if passed
           else "; ".join(result["problems"]) + f"; see {folder}/sessions.log")
    )  # fmt: skip
    return 0 if passed else 1


if __name__ == "__main__":
    command = Command(__doc__ or "", Options, run, needs_reader=False)
    cli.start("soak", command, sys.argv[1:])
