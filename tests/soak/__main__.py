"""Trains a tiny model while killing it, damaging its checkpoints and filling its disk.

    python -m tests.soak --kills=50 --minutes=20

Ends by itself after so many kills or minutes. Then the run is completed, an uninterrupted run does
the same steps, and both must agree: the same parameters bit for bit, every data row used once an
epoch, and every save that was reported restorable until it was deleted by its policy or damaged on
purpose. Writes result.json to --workdir; exit code 0 if all is well, 1 if not.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

from tests.soak import faults, kills

_QUOTA = "size=8m"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs and SIGTERMs in all")
    parser.add_argument("--minutes", type=float, default=20.0, help="no new fault after this time")
    parser.add_argument("--workdir", default="", help="new or empty folder ('': a temporary one)")
    parser.add_argument("--seed", type=int, default=1, help="which moments and faults")
    # For the command itself: the folder in which the disk of the checkpoints has been mounted.
    parser.add_argument("--inside", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kills < 1 or not options.minutes > 0:
        parser.error("--kills must be at least 1 and --minutes greater than 0")
    return options


def main(options: argparse.Namespace) -> int:
    if options.inside:
        return _soak(options.inside, options, refusal="")
    given = options.workdir or tempfile.mkdtemp(prefix="flm_jax_soak_")
    folder = pathlib.Path(given).expanduser().absolute()
    if folder.is_dir() and any(folder.iterdir()):
        sys.exit(f"error: --workdir={folder} is not empty; give a new folder")
    (folder / "run" / "checkpoints").mkdir(parents=True)
    refusal = faults.quota_refusal()
    if refusal:
        print(f"without a full disk: no small disk can be mounted here ({refusal})")
        code = _soak(folder, options, refusal)
    else:
        mount = f'mount -t tmpfs -o {_QUOTA} none "$0" && exec "$@"'
        command = [
            *("unshare", "-rm", "sh", "-c", mount, str(folder / "run" / "checkpoints")),
            *(sys.executable, "-m", "tests.soak", f"--inside={folder}"),
            *(f"--kills={options.kills}", f"--minutes={options.minutes}", f"--seed={options.seed}"),
        ]
        code = subprocess.call(command)
    if code == 0 and not options.workdir:
        shutil.rmtree(folder, ignore_errors=True)
    return code


def _soak(folder: pathlib.Path, options: argparse.Namespace, refusal: str) -> int:
    result = kills.soak(folder, options.kills, options.minutes, options.seed, refusal)
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    passed = result["passed"]
    print(
        f"soak {'PASSED' if passed else 'FAILED'}: {result['kills']} kills in "
        f"{result['minutes']:g} minutes; "
        + ("same parameters, every row once, no reported save lost" if passed
           else "; ".join(result["problems"]) + f"; see {folder}/sessions.log")
    )  # fmt: skip
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(_options()))
