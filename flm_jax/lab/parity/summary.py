"""All comparisons of a run: which cases passed, and the whole as JSON."""

import collections
import json
import pathlib

from flm_jax.host import files
from flm_jax.lab.parity.checks import Row


def summary(rows: list[Row], seconds: float) -> str:
    """Cases and comparisons that passed, and the cases that did not with their first reason."""
    failed: dict[str, list[Row]] = collections.defaultdict(list)
    for row in rows:
        if not row.ok:
            failed[row.case].append(row)
    cases = list(dict.fromkeys(row.case for row in rows))
    good = sum(row.ok for row in rows)
    lines = []
    for case, bad in failed.items():
        why = bad[0].reason or f"{len(bad)} beyond tolerance, the first: {bad[0].quantity}"
        lines.append(f"FAIL {case}: {why}")
    verdict = "FAIL" if failed else "ok"
    lines.append(
        f"{verdict}: {len(cases) - len(failed)} of {len(cases)} cases passed, "
        f"{good} of {len(rows)} comparisons, {seconds:.0f} s"
    )
    return "\n".join(lines)


def write(path: pathlib.Path, directory: str, rows: list[Row], seconds: float) -> None:
    """All rows as JSON; numbers that are not finite become text."""
    cases = {row.case for row in rows}
    failed = {row.case for row in rows if not row.ok}
    content = {
        "directory": str(directory),
        "ok": not failed,
        "cases": len(cases),
        "cases_failed": sorted(failed),
        "seconds": round(seconds, 1),
        "rows": [row.plain() for row in rows],
    }
    files.write_atomically(path, json.dumps(content, indent=1))
