"""What the records of a soak must say."""

import collections
import json
import pathlib

from flm_jax.checkpoint import manifest


def read(path: pathlib.Path) -> list[dict]:
    """The lines of a record in order; a line torn by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def saved_steps(record: list[dict]) -> set[int]:
    """Steps reported as saved, ever."""
    return {row["saved"] for row in record if "saved" in row}


def good_steps(folder: pathlib.Path) -> list[int]:
    """Steps whose every file is as the manifest says."""
    good = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.isdecimal():
            try:
                if manifest.verify(path):
                    good.append(int(path.name))
            except manifest.Damaged:
                continue
    return sorted(good)


def rows_by_step(record: list[dict], problems: list[str], name: str) -> dict[int, list[int]]:
    """Step to rows; a step that was repeated after a kill must have read the same rows again."""
    rows: dict[int, list[int]] = {}
    for line in record:
        if "rows" in line and rows.setdefault(line["step"], line["rows"]) != line["rows"]:
            problems.append(f"{name}: step {line['step']} read other rows when it was repeated")
    return rows


def _every_row_once(rows: dict[int, list[int]], count: int, problems: list[str], name: str) -> None:
    steps = sorted(rows)
    if steps != list(range(1, len(steps) + 1)):
        problems.append(f"{name}: the record of data rows has gaps")
        return
    order = [row for step in steps for row in rows[step]]
    for start in range(0, len(order), count):
        epoch = collections.Counter(order[start : start + count])
        if max(epoch.values()) > 1:
            problems.append(f"{name}: epoch {start // count} used row {epoch.most_common(1)[0][0]}"
                            " twice")  # fmt: skip


def _digests(record: list[dict], problems: list[str], name: str) -> None:
    """What a session resumed from must be, bit for bit, what was saved at that step."""
    known: dict[int, str] = {}
    for line in record:
        if "saving" in line and known.setdefault(line["saving"], line["digest"]) != line["digest"]:
            problems.append(f"{name}: step {line['saving']} had other parameters when repeated")
        if "resumed" in line and line["resumed"] and known[line["resumed"]] != line["digest"]:
            problems.append(f"{name}: step {line['resumed']} was restored with other parameters")


def compare(soaked: list[dict], reference: list[dict]) -> tuple[list[str], dict]:
    """(problems, figures) of the records of the soaked and of the uninterrupted run."""
    problems: list[str] = []
    steps = {}
    for name, record in ("soaked run", soaked), ("uninterrupted run", reference):
        count = next(line["rows_in_all"] for line in record if "rows_in_all" in line)
        steps[name] = rows_by_step(record, problems, name)
        _every_row_once(steps[name], count, problems, name)
        _digests(record, problems, name)
    if steps["soaked run"] != steps["uninterrupted run"]:
        problems.append("the soaked run did not read the rows of the uninterrupted run")
    ends = [[line for line in record if "complete" in line][-1:] for record in (soaked, reference)]
    if not all(ends):
        problems.append("a run did not complete")
    elif ends[0] != ends[1]:
        problems.append("the final parameters differ from those of the uninterrupted run")
    at_end = ends[0][0] if ends[0] else {}
    return problems, {
        "steps": at_end.get("complete", 0),
        "final_state_sha256": at_end.get("digest", ""),
        "epochs": round(sum(map(len, steps["soaked run"].values())) / count, 2),
        "steps_repeated": sum("rows" in line for line in soaked) - len(steps["soaked run"]),
        "saves_reported": len([line for line in soaked if "saved" in line]),
        "saves_that_failed": len([line for line in soaked if "failed" in line]),
        "resumes": len([line for line in soaked if line.get("resumed")]),
    }
