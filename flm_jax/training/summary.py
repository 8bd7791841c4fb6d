"""The end of a run for whoever reads along: results, the report, and the commands to go on."""

import math
import shlex

from flm_jax import config as config_lib
from flm_jax import report
from flm_jax.checkpoint import removal
from flm_jax.evals import base as evals
from flm_jax.host import distributed
from flm_jax.host.command import pasteable
from flm_jax.inference.programs import counted
from flm_jax.training import optim, results
from flm_jax.training.session import Session
from flm_jax.training.step import TrainState

SHOWN_SAMPLES = 3


def finish(session: Session, state: TrainState, step: int, why: str) -> None:
    """Writes results and report of a run that has ended, and prints what there is to say."""
    found, were_there = results.write_results(session, state, step, why)
    if not distributed.is_main():
        return
    heading = "was already finished" if were_there else "is finished"
    if why == "time limit":
        heading = f"was stopped by train.max_minutes={session.config.train.max_minutes:g}"
    page = report.write(session.workdir)
    if not were_there:
        session.log.write_report(page)
    lines = [
        "",
        f"The run {heading} at step {step} of {session.config.train.steps}.",
        "",
        *_shown(found),
        "",
        f"report:        {page}",
        *(f"{what + ':':<15}{line}" for what, line in commands(session.config, session.place)),
        "               (or choose another --workdir)",
    ]
    print("\n".join(lines))


def _shown(found: dict) -> list[str]:
    """The first samples, the table and the verdict of results.json."""
    lines = []
    for group in found["samples"]:
        lines.append(f"--- {counted(group['steps'])}")
        lines += [f"  {' | '.join(text.splitlines())}" for text in group["texts"][:SHOWN_SAMPLES]]
    if found["rows"]:
        lines += ["", evals.format_table(found), "", *found.get("verdict", ())]
    return lines


def commands(config: config_lib.Config, workdir: str) -> list[tuple[str, str]]:
    """What one may do next, each with a command that can be pasted into a shell."""
    counts = ",".join(map(str, config.sampler.steps))
    generate = pasteable("generate", f"--checkpoint={workdir}", f"--steps={counts}")
    found = [("more samples", generate)]
    if config.optim.schedule in optim.CAN_GO_ON:  # others are made for one number of steps
        longer = [f"--config.train.steps={2 * config.train.steps}"]
        if config.train.max_minutes:
            minutes = math.ceil(2 * config.train.max_minutes)
            longer.append(f"--config.train.max_minutes={minutes}")
        found.append(("train longer", pasteable("train", f"--workdir={workdir}", *longer)))
    return [*found, ("start over", shlex.join(removal(workdir)))]
