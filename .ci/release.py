"""Makes a release ready: `make release VERSION=x.y.z`, which is `python .ci/release.py x.y.z`.

Checks that nothing is uncommitted, that the version is new and that CHANGELOG.md has entries under
Unreleased; writes the version into setup.cfg and CITATION.cff and the heading into CHANGELOG.md;
builds sdist and wheel, the wheel from the sdist, of what git knows and nothing else; installs the
wheel into an empty environment outside the checkout, and runs `flm --version`, `flm --help` and
`flm doctor` there. What it built is in dist/. If any of this fails, the three files are as before.

Nothing is committed (--commit does that), tagged or uploaded: the last lines say how.
"""

import argparse
import datetime
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
UNRELEASED = "## Unreleased"


class Refused(Exception):
    """Why there is no release: one sentence."""


def run(*words: str | os.PathLike, cwd: pathlib.Path, quiet: bool = False) -> str:
    """What a command prints; Refused, with the end of it, if it fails."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, words)),
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if quiet else subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        said = "\n".join((done.stdout + (done.stderr or "")).splitlines()[-20:])
        command = " ".join(map(str, words))
        raise Refused(f"{command} ended with {done.returncode}; it said:\n{said}")
    return done.stdout


def numbers(version: str) -> tuple[int, ...]:
    """1.2.3 as numbers; Refused for anything else."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise Refused(f"VERSION={version} is not three numbers; write for example VERSION=1.2.3")
    return tuple(map(int, version.split(".")))


def entries(changelog: str) -> str:
    """What stands under Unreleased, up to the next version; Refused if there is no such heading."""
    parts = re.split(rf"^{UNRELEASED}$", changelog, flags=re.MULTILINE)
    if len(parts) != 2:
        count = len(parts) - 1
        raise Refused(f"CHANGELOG.md has {count} lines {UNRELEASED!r}; it needs one, at its top")
    return re.split(r"^## ", parts[1], flags=re.MULTILINE)[0]


def version_of(setup: str) -> str:
    """The version in the text of setup.cfg."""
    found = re.findall(r"^version = (\S+)$", setup, re.MULTILINE)
    if len(found) != 1:
        raise Refused(f"setup.cfg has {len(found)} lines 'version = ...'; it needs one")
    return found[0]


def check(root: pathlib.Path, version: str) -> None:
    """Refused unless this version can be made of this checkout; nothing is changed."""
    wanted = numbers(version)
    changed = run("git", "status", "--porcelain", cwd=root).splitlines()
    if changed:
        raise Refused(
            f"{len(changed)} files are not committed, the first is {changed[0][3:]}; commit or "
            "remove them, for a release is what git knows"
        )
    now = version_of((root / "setup.cfg").read_text(encoding="utf-8"))
    if wanted < numbers(now):
        raise Refused(f"VERSION={version} is below {now}, which setup.cfg has; choose a higher one")
    if run("git", "tag", "--list", f"v{version}", cwd=root).strip():
        raise Refused(f"there is a tag v{version} already; choose a higher version")
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if re.search(rf"^## {re.escape(version)}\b", changelog, re.MULTILINE):
        raise Refused(f"CHANGELOG.md has a heading for {version} already; choose a higher version")
    if not re.search(r"^[-*] ", entries(changelog), re.MULTILINE):
        raise Refused(
            f"CHANGELOG.md has no entries under {UNRELEASED!r}; write what users will notice"
        )


def edits(root: pathlib.Path, version: str, date: str) -> dict[pathlib.Path, str]:
    """The three files as they are in the release, by path; nothing is written."""
    setup, citation, changelog = (
        root / name for name in ("setup.cfg", "CITATION.cff", "CHANGELOG.md")
    )
    text = setup.read_text(encoding="utf-8")
    found = {setup: text.replace(f"version = {version_of(text)}\n", f"version = {version}\n", 1)}
    cited = re.sub(r"^date-released: .*\n", "", citation.read_text(encoding="utf-8"), flags=re.M)
    cited, count = re.subn(
        r"^version: .*$", f"version: {version}\ndate-released: {date}", cited, flags=re.M
    )
    if count != 1:
        raise Refused(f"CITATION.cff has {count} lines 'version: ...'; it needs one")
    found[citation] = cited
    text = changelog.read_text(encoding="utf-8")
    entries(text)
    heading = f"{UNRELEASED}\n\n## {version} ({date})"
    found[changelog] = re.sub(rf"^{UNRELEASED}$", heading, text, count=1, flags=re.MULTILINE)
    return found


def write(texts: dict[pathlib.Path, str]) -> None:
    """Writes files, each whole or not at all."""
    for path, text in texts.items():
        new = path.with_name(f".{path.name}.new")
        new.write_text(text, encoding="utf-8")
        new.replace(path)


def environment(folder: pathlib.Path) -> pathlib.Path:
    """An empty virtual environment with pip: its folder of programs."""
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    return folder / ("Scripts" if os.name == "nt" else "bin")


def build(root: pathlib.Path, version: str, folder: pathlib.Path) -> list[pathlib.Path]:
    """sdist and wheel of what git knows, with the three files as they are now, in ``folder``."""
    source = folder / "source"
    source.mkdir()
    run("git", "archive", "--output", folder / "source.tar", "HEAD", cwd=root)
    with tarfile.open(folder / "source.tar") as archive:
        archive.extractall(source, filter="data")
    for path in edits(root, version, ""):
        shutil.copy(path, source / path.name)
    programs = environment(folder / "builder")
    python = programs / "python"
    listed = run(sys.executable, root / ".ci/extra.py", "release", cwd=root).splitlines()
    run(python, "-m", "pip", "install", "--quiet", *listed, cwd=folder)
    made = folder / "dist"
    run(python, "-m", "build", "--outdir", made, source, cwd=folder)
    files = sorted(made.iterdir())
    run(python, "-m", "twine", "check", "--strict", *files, cwd=folder)
    names = {file.name for file in files}
    if names != {f"flm_jax-{version}.tar.gz", f"flm_jax-{version}-py3-none-any.whl"}:
        raise Refused(f"{', '.join(sorted(names))} were built, not one sdist and one wheel")
    return files


def try_out(wheel: pathlib.Path, version: str, folder: pathlib.Path) -> None:
    """Installs a wheel with its libraries where nothing is, and runs its command there."""
    programs = environment(folder / "empty")
    run(programs / "python", "-m", "pip", "install", "--quiet", wheel, cwd=folder)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    said = run(programs / "flm", "--version", cwd=elsewhere, quiet=True).strip()
    if said != f"flm_jax {version}":
        raise Refused(f"the installed flm --version says {said!r}, not 'flm_jax {version}'")
    if "flm train" not in run(programs / "flm", "--help", cwd=elsewhere, quiet=True):
        raise Refused("the installed flm --help does not name flm train")
    print(run(programs / "flm", "doctor", cwd=elsewhere))


def release(root: pathlib.Path, version: str, commit: bool = False) -> None:
    """All of it; Refused, with the checkout as it was, if anything fails."""
    check(root, version)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    texts = edits(root, version, date)
    before = {path: path.read_text(encoding="utf-8") for path in texts}
    with tempfile.TemporaryDirectory(prefix="flm_release_") as name:
        folder = pathlib.Path(name).resolve()
        try:
            write(texts)
            print("building sdist and wheel ...", flush=True)
            files = build(root, version, folder)
            print("installing the wheel into an empty environment ...", flush=True)
            try_out(next(file for file in files if file.suffix == ".whl"), version, folder)
            (root / "dist").mkdir(exist_ok=True)
            kept = [shutil.copy(file, root / "dist") for file in files]
            if commit:
                names = [path.name for path in texts]
                run("git", "commit", "--quiet", "-m", f"Release {version}", *names, cwd=root)
        except BaseException:  # Ctrl-C, too
            write(before)
            raise
        shown = [pathlib.Path(path).relative_to(root) for path in kept]
        print("\n".join(next_steps(version, shown, commit)), flush=True)


def next_steps(version: str, files: Sequence[pathlib.Path], committed: bool) -> list[str]:
    """What a person does now, one command a line."""
    steps = [] if committed else ["git diff", f"git commit -am 'Release {version}'"]
    steps += [
        f"git tag -a v{version} -m 'flm_jax {version}'",
        f"git push origin HEAD v{version}",
        f"python -m twine upload {' '.join(map(str, files))}",
    ]
    return [f"{version} is built and was tried out. Nothing is tagged or uploaded; now:", *steps]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Makes a release ready; see the top of the file.")
    parser.add_argument("version", help="three numbers, as 1.2.3")
    parser.add_argument("--commit", action="store_true", help="commit the three changed files")
    options = parser.parse_args(words)
    try:
        release(ROOT, options.version, options.commit)
    except Refused as refused:
        print(f"error: {refused}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
