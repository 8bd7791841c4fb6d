"""One soak: sessions one after the other, each ended by a fault, and what each must leave."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import tqdm
from tests.soak import faults, session, verdict

_ROOM_WHEN_FULL = 100_000  # bytes: less than a checkpoint, more than its folders
_ENDLESS = 10**6
_PATIENCE_S = 240.0  # for anything a session has to do before it is called stuck


class Soak:
    """The sessions of one run and what they must have left."""

    def __init__(self, folder: pathlib.Path, seed: int, quota: bool):
        self.folder, self.seed, self.quota = folder, seed, quota
        self.draw = random.Random(seed)
        self.workdir = folder / "run"
        self.checkpoints = self.workdir / "checkpoints"
        self.record = folder / "record.jsonl"
        self.problems: list[str] = []
        self.spoiled: set[int] = set()
        self.counts = dict.fromkeys(
            ("SIGKILL", "SIGTERM", "SIGKILL in a save", "damaged", "full disk", "fell back"), 0
        )
        self.log = (folder / "sessions.log").open("ab")
        self.environment = os.environ | {"JAX_PLATFORMS": "cpu"}

    def start(self, workdir: pathlib.Path, record: pathlib.Path, steps: int) -> subprocess.Popen:
        words = ["-m", "tests.soak.session", workdir, record, steps, self.seed]
        return subprocess.Popen(
            [sys.executable, *map(str, words)],
            stdout=self.log,
            stderr=self.log,
            env=self.environment,
        )

    def finish(self, workdir: pathlib.Path, record: pathlib.Path, steps: int) -> None:
        """A session that nobody disturbs."""
        process = self.start(workdir, record, steps)
        try:
            code = process.wait(_PATIENCE_S + steps)
        except subprocess.TimeoutExpired:
            process.kill()
            code = "a time-out"
        if code:
            self.problems.append(f"the undisturbed session of {record.name} ended with {code}")

    def lines(self) -> list[dict]:
        return verdict.read(self.record) if self.record.exists() else []

    def one_kill(self) -> None:
        """Faults to the checkpoints, a session, its death, and what must be left after it."""
        self._maybe_damage()
        full = self._maybe_fill()
        before = len(self.lines())
        good = verdict.good_steps(self.checkpoints)
        process = self.start(self.workdir, self.record, _ENDLESS)
        kind = self.draw.choices(("SIGKILL in a save", "SIGKILL", "SIGTERM"), (4, 3, 3))[0]
        wanted = {"SIGKILL in a save": "saving", "SIGTERM": "step"}.get(kind)
        if full:
            wanted = "saving"
        if wanted:  # with a full disk two saves begin: training must go on after the first
            self._wait_for(process, wanted, before, self.draw.randint(2 if full else 1, 8))
            delay = self.draw.uniform(0.0, 0.08 if wanted == "saving" else 1.0)
        else:
            delay = self.draw.uniform(0.2, 8.0)  # also during the start and the restore
        time.sleep(delay)
        if process.poll() is not None:
            self.problems.append(f"a session ended by itself with code {process.returncode}")
        process.send_signal(signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL)
        try:
            code = process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
            self.problems.append(f"a session did not end {_PATIENCE_S:.0f} s after SIGTERM")
        self.counts[kind] += 1
        new = self.lines()[before:]
        self._check(kind, code, full, good, new)

    def _wait_for(self, process, key: str, before: int, times: int) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while sum(key in line for line in self.lines()[before:]) < times:
            if process.poll() is not None:
                return
            if time.monotonic() > deadline:
                self.problems.append(f"no {key!r} within {_PATIENCE_S:.0f} s")
                return
            time.sleep(0.01)

    def _maybe_damage(self) -> None:
        """Spoils up to two of the newest good steps; one good step must stay."""
        good = verdict.good_steps(self.checkpoints)
        if len(good) < 2 or self.draw.random() > 0.3:
            return
        for step in good[-self.draw.randint(1, min(2, len(good) - 1)) :]:
            self._say(faults.damage(self.checkpoints / str(step), self.draw))
            self.spoiled.add(step)
            self.counts["damaged"] += 1

    def _maybe_fill(self) -> bool:
        if not self.quota or not self.checkpoints.is_dir() or self.draw.random() > 0.2:
            return False
        faults.fill(self.checkpoints, _ROOM_WHEN_FULL)
        self._say("disk filled")
        self.counts["full disk"] += 1
        return True

    def _check(self, kind: str, code: int, full: bool, good: list[int], new: list[dict]) -> None:
        resumed = [line["resumed"] for line in new if "resumed" in line]
        if resumed and resumed[0] != max(good, default=0):
            self.problems.append(f"resumed at step {resumed[0]} with {good} good")
        self.counts["fell back"] += bool(self.spoiled and resumed)
        self.spoiled &= set() if resumed else self.spoiled
        if kind == "SIGTERM" and code != 128 + signal.SIGTERM and not full:
            self.problems.append(f"a session ended with code {code} after SIGTERM")
        after = verdict.good_steps(self.checkpoints)
        reported = [line["saved"] for line in new if "saved" in line]
        if reported and max(reported) not in after:
            self.problems.append(f"step {max(reported)} was reported saved, but {after} are good")
        if not after and good:
            self.problems.append(f"of the good steps {good} none is left")
        if full:
            faults.empty(self.checkpoints)
            if sum("saving" in line for line in new) < 2:
                self.problems.append("training did not go on with a full disk")
        self._say(f"{kind}, full={full}, code {code}, good before {good}, after {after}")

    def _say(self, text: str) -> None:
        self.log.write(f"--- {text}\n".encode())
        self.log.flush()


def soak(folder: pathlib.Path, kills: int, minutes: float, seed: int, refusal: str) -> dict:
    """Runs everything in an empty folder; returns the result.

    Args:
      refusal: why the checkpoints' folder has no quota; '' if it has one.
    """
    started = time.monotonic()
    session.write_corpus(folder / "corpus.txt", seed)
    run = Soak(folder, seed, quota=not refusal)
    done = 0
    with tqdm.tqdm(total=kills, desc="kills", mininterval=1 if sys.stderr.isatty() else 10) as bar:
        while done < kills and time.monotonic() - started < 60 * minutes and not run.problems:
            run.one_kill()
            done += 1
            bar.update()
    killed_s = time.monotonic() - started
    last = max((line["step"] for line in run.lines() if "rows" in line), default=0)
    steps = last + session.SAVE_EVERY
    reference = folder / "reference.jsonl"
    run.finish(run.workdir, run.record, steps)
    run.finish(folder / "reference", reference, steps)
    figures = {}
    if not run.problems:
        run.problems, figures = verdict.compare(run.lines(), verdict.read(reference))
    return {
        "passed": not run.problems,
        "kills": done,
        "problems": run.problems,
        "faults": run.counts,
        "no_quota": refusal,
        "seed": seed,
        "minutes": round((time.monotonic() - started) / 60, 2),
        "minutes_of_kills": round(killed_s / 60, 2),
        **figures,
    }
