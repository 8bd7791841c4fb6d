"""Say what this machine has for flm_jax, and what is wrong with it.

    flm doctor --workdir=runs
    flm doctor --workdir=/data/runs --json > doctor.json

Versions of all libraries, optional parts, devices, memory, the folder of the runs and that of
caches, and variables of the environment that JAX or flm_jax read. What is wrong stands at the end,
each with its remedy, and then the exit code is 1. Please send it with a bug report; it has no text
of yours, but it has paths.
"""

import dataclasses
import json
from collections.abc import Sequence

from flm_jax.cli.command import Command
from flm_jax.host import doctor
from flm_jax.knobs import knob


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    workdir: str = knob("runs", "where runs are to be written")
    json: bool = knob(False, "one JSON object instead of lines")


def run(options: Options) -> int:
    found = list(doctor.facts(options.workdir))
    if options.json:
        print(json.dumps([dataclasses.asdict(fact) for fact in found], indent=1))
    else:
        print("\n".join(lines(found)))
    return int(any(fact.problem for fact in found))


def lines(found: Sequence[doctor.Fact]) -> list[str]:
    """The report for people: a section after the other, what is wrong at the end."""
    width = max(len(fact.name) for fact in found)
    said, section = [], ""
    for fact in found:
        if fact.section != section:
            section = fact.section
            said += [""] * bool(said) + [section]
        said.append(f"  {fact.name:{width}}  {fact.value}")
    problems = [f"* {fact.problem}" for fact in found if fact.problem]
    return [*said, "", *(["wrong here:", *problems] if problems else ["nothing is wrong here"])]


COMMAND = Command(__doc__, Options, run)
