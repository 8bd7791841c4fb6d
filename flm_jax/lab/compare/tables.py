"""The tables of a comparison, made from results.json: as Markdown, and as LaTeX to print.

A value is marked best (bold) where it is lower than that of every other method by more than two
sigma of the difference; otherwise the least value and those that cannot be told from it are marked
as tied (italic). Who recites, or is likelier than real text at its own diversity, is marked by
neither. A dash: the method does not reach that diversity.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence

from flm_jax.lab.compare import findings, rankings
from flm_jax.lab.compare.findings import Results
from flm_jax.lab.compare.frontier import DIVERSITY, ENTROPY, Value

BEST, TIED = "best", "tied"
NAMES = {ENTROPY: "entropy", DIVERSITY: "distinct-4"}
NOTHING = "–"
_TITLES = {
    "entropy": "entropy in a sample",
    "self_bleu": "self-BLEU",
    "copied": "copied",
    "valid": "valid",
}
_SHARES = ("repetition", "copied", "valid")
LEGEND = (
    "Bold: lower than every other by more than two sigma. Italic: cannot be told from the lowest. "
    "Neither is said of who recites the training text, or is likelier than real text at its own "
    "diversity. ±: 95 % interval. ≤: at most that, for all samples were more diverse. –: not "
    "reached."
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A text, how it is marked ("", `BEST` or `TIED`), and a remark in small letters."""

    text: str
    mark: str = ""
    remark: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """Attributes:
    name: an identifier; "evaluations_4".
    head: titles of the columns behind the name of a row.
    rows: (name, cells).
    note: sentences that explain it.
    marks: whether `LEGEND` explains it, too.
    """

    name: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    note: str = ""
    marks: bool = False


def every(results: Results) -> list[Table]:
    """All tables that there is something for."""
    made = [over_evaluations(results, axis, results["headline"]) for axis in NAMES]
    made += [at_evaluations(results, number) for number in numbers(results)]
    made.append(metrics(results))
    if len(results["judges"]) > 1:
        made += [judges(results, axis) for axis in NAMES]
        made.append(orders(results))
    made.append(landmarks(results))
    return [table for table in made if table.rows]


def numbers(results: Results) -> list[int]:
    """The numbers of evaluations that there are."""
    return sorted({row["evaluations"] for row in results["rows"]})


def methods(results: Results) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in results["rows"]))


def judge_of(likelihood: str) -> str:
    return likelihood.partition("/")[2]


def is_exact(results: Results) -> bool:
    """Whether the headlines are of the truth itself."""
    return results["judges"][0]["exact"]


def over_evaluations(results: Results, axis: str, likelihood: str) -> Table:
    """A row for every method, a column for every number of evaluations."""
    columns = numbers(results)
    found = findings.pick(results, likelihood, axis, 0.0)
    marks = {}
    for number in columns:
        here = contenders(results, likelihood, axis, 0.0, number)
        marks |= {(method, number): mark for method, mark in marked(here).items()}
    truth = results["real"]["values"].get(likelihood) if is_exact(results) else None
    rows = tuple(
        (
            method,
            tuple(
                _value(found.get((method, n)), marks.get((method, n), ""), truth) for n in columns
            ),
        )
        for method in methods(results)
    )
    centre = results["real"]["values"].get(axis)
    title = f"Nats per token under {judge_of(likelihood)} at the {NAMES[axis]} of real text"
    note = f"By evaluations of the network. Real text: {_real(results, likelihood)} at "
    note += f"{NAMES[axis]} {_number(centre)}. "
    note += "In brackets: nats above the truth." if truth is not None else ""
    return Table(f"at_{axis}", title, tuple(map(str, columns)), rows, note, marks=True)


def at_evaluations(results: Results, number: int) -> Table:
    """Everything at one number of evaluations: all targets, and the likeliest point as it is."""
    likelihood, targets = results["headline"], results["settings"]["targets"]
    columns = [(axis, offset) for axis in NAMES for offset in targets[axis]]
    found = {column: findings.pick(results, likelihood, *column) for column in columns}
    marks = {column: marked(contenders(results, likelihood, *column, number)) for column in columns}
    own = [row for row in results["rows"] if row["evaluations"] == number]
    times = {
        row["method"]: row["milliseconds"]
        for row in results["latencies"]
        if row["evaluations"] == number
    }
    fewer = any(row["used"] != number for row in own)
    rows = []
    for row in own:
        method, point = row["method"], row["likeliest"]
        cells = [
            _value(found[column].get((method, number)), marks[column].get(method, ""))
            for column in columns
        ]
        raw = " / ".join(_number(point["values"].get(x)) for x in (likelihood, *NAMES))
        cells.append(Cell(raw, remark=point["knobs"]))
        cells += [Cell(f"{row['used']:.1f}")] if fewer else []
        cells += [Cell(_number(times.get(method)))] if times else []
        rows.append((method, tuple(cells)))
    head = [f"{NAMES[axis]} {_offset(offset)}" for axis, offset in columns]
    title = f"{number} evaluation{'s' * (number != 1)}: nats per token under {judge_of(likelihood)}"
    note = f"At diversities relative to real text ({_real(results, likelihood)} at entropy "
    note += " and distinct-4 ".join(_number(results["real"]["values"].get(x)) for x in NAMES)
    note += "). Likeliest point: as it is (nats / entropy / distinct-4), which says nothing "
    note += "by itself."
    head += ["likeliest point", *["evaluations used"] * fewer, *["ms / sample"] * bool(times)]
    return Table(f"evaluations_{number}", title, tuple(head), tuple(rows), note, marks=True)


def metrics(results: Results) -> Table:
    """All other metrics at the point of each front whose diversity is nearest to real text's."""
    names = _metrics(results)
    rows = []
    for row in results["rows"]:
        point = row["nearest"]
        cells = [Cell(show(name, point["values"].get(name))) for name in names]
        strange = ", ".join(_title(name) for name in point["outside"]) or "none"
        label = f"{row['method']}, {row['evaluations']}"
        rows.append((label, (*cells, Cell(strange), Cell(point["knobs"]))))
    real = results["real"]["values"]
    cells = tuple(Cell(show(name, real.get(name))) for name in names)
    rows.append(("real text", (*cells, Cell(""), Cell(""))))
    note = "At the point of each front that is nearest to real text in diversity. Outside: metrics "
    note += "beyond the 1 % to 99 % range of other real text of the same size, for every seed."
    head = (*map(_title, names), "outside", "sampler")
    return Table("metrics", "Other metrics", head, tuple(rows), note)


def judges(results: Results, axis: str) -> Table:
    """What every judge says at the diversity of real text."""
    likelihoods = [f"nats_per_token/{judge['name']}" for judge in results["judges"]]
    found = {name: findings.pick(results, name, axis, 0.0) for name in likelihoods}
    rows = []
    for row in results["rows"]:
        key = row["method"], row["evaluations"]
        cells = tuple(_value(found[name].get(key), "") for name in likelihoods)
        rows.append((f"{key[0]}, {key[1]}", cells))
    rows.append(("real text", tuple(Cell(_real(results, name)) for name in likelihoods)))
    title = f"Nats per token under every judge at the {NAMES[axis]} of real text"
    note = "Each in the tokens of the judge: compare within a column."
    return Table(f"judges_{axis}", title, tuple(map(judge_of, likelihoods)), tuple(rows), note)


def orders(results: Results) -> Table:
    """Kendall's tau of the order of methods between judges."""
    columns = [*numbers(results), None]
    rows: dict[str, dict[int | None, str]] = {}
    for one in results["orders"]:
        name = f"{judge_of(one['first'])}, {judge_of(one['second'])} (at {NAMES[one['axis']]})"
        tau = NOTHING if one["tau"] is None else f"{one['tau']:.2f}"
        rows.setdefault(name, {})[one["evaluations"]] = f"{tau} of {one['methods']}"
    shown = tuple(
        (name, tuple(Cell(found.get(column, NOTHING)) for column in columns))
        for name, found in rows.items()
    )
    note = "1: both judges put the methods into the same order at the diversity of real text; -1: "
    note += "into the reverse. Behind it: how many methods that is of."
    head = tuple("all" if n is None else str(n) for n in columns)
    return Table("judges_order", "Do judges agree? Kendall's tau", head, shown, note)


def landmarks(results: Results) -> Table:
    """Real text, and what samplers without a network reach."""
    names = _metrics(results)
    rows = tuple(
        (one["name"], tuple(Cell(show(name, one["values"].get(name))) for name in names))
        for one in (results["real"], *results["landmarks"])
    )
    note = f"{results['real']['count']} rows of each. Samplers without a network draw from counts "
    note += "of the training text."
    return Table("landmarks", "Landmarks", tuple(map(_title, names)), rows, note)


def contenders(
    results: Results, likelihood: str, axis: str, offset: float, number: int
) -> dict[str, Value]:
    """The methods that may be called best at one place: see `findings.barred`."""
    found = findings.pick(results, likelihood, axis, offset)
    out = findings.barred(results, likelihood, axis, offset)
    return {key[0]: value for key, value in found.items() if key[1] == number and key not in out}


def marked(values: dict[str, Value]) -> dict[str, str]:
    """The marks of methods that are compared with each other."""
    found = rankings.verdict(values)
    if found is None:
        return {}
    if found.best:
        return {found.best: BEST}
    return {name: TIED for name in (found.least, *found.tied)}


def _metrics(results: Results) -> list[str]:
    """Those that real text has, likelihoods first."""
    real = results["real"]["values"]
    names = [name for name, value in real.items() if value is not None]
    return sorted(names, key=lambda name: (not name.startswith("nats"), name != "entropy"))


def _title(metric: str) -> str:
    kind, _, judge = metric.partition("/")
    title = _TITLES.get(kind, re.sub(r"_(\d)", r"-\1", kind).replace("_", " "))
    title = title.replace("nats per ", "nats / ").replace("mauve", "MAUVE")
    return f"{title} ({judge})" if judge else title


def show(metric: str, value: float | None) -> str:
    """A number of a metric, shares in per cent."""
    if value is not None and metric.startswith(_SHARES):
        return f"{100 * value:.1f} %"
    return _number(value)


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def _offset(offset: float) -> str:
    return "of real text" if not offset else f"{offset:+g}".replace("-", "−")


def _real(results: Results, likelihood: str) -> str:
    return f"{_number(results['real']['values'].get(likelihood))} nats"


def _value(value: Value | None, mark: str, truth: float | None = None) -> Cell:
    if value is None:
        return Cell(NOTHING)
    text = "≤ " * value.bound + f"{value.value:.2f}"
    if math.isfinite(value.sigma):
        text += f" ± {value.high - value.value:.2f}"
    if truth is not None:
        text += f" ({value.value - truth:+.2f})".replace("-", "−")
    return Cell(text, mark)


def markdown(title: str, said: Sequence[str], made: Sequence[Table]) -> str:
    """Sentences and tables as one document."""
    blocks = [f"# {title}", "\n".join(f"* {sentence}" for sentence in said), LEGEND]
    for table in made:
        lines = [
            f"## {table.title}",
            "",
            "| | " + " | ".join(map(_in_markdown, table.head)) + " |",
            "|---|" + "---:|" * len(table.head),
        ]
        lines += [
            f"| {_in_markdown(name)} | "
            + " | ".join(_marked(cell, _in_markdown, "**{}**", "*{}*") for cell in cells)
            + " |"
            for name, cells in table.rows
        ]
        blocks.append("\n".join([*lines, "", table.note]))
    return "\n\n".join(blocks) + "\n"


def latex(made: Sequence[Table]) -> str:
    """All tables for booktabs; `\\input` the file, or take what is needed."""
    blocks = ["% Needs \\usepackage{booktabs}. Made by flm compare."]
    for table in made:
        caption = f"{table.title}. {table.note}" + f" {LEGEND}" * table.marks
        lines = [
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{_in_latex(caption)}}}",
            f"\\label{{tab:{table.name.replace('_', '-')}}}",
            f"\\begin{{tabular}}{{l{'r' * len(table.head)}}}",
            "\\toprule",
            " & ".join(["", *map(_in_latex, table.head)]) + " \\\\",
            "\\midrule",
        ]
        lines += [
            " & ".join(
                [
                    _in_latex(name),
                    *(_marked(x, _in_latex, "\\textbf{{{}}}", "\\emph{{{}}}") for x in cells),
                ]
            )
            + " \\\\"
            for name, cells in table.rows
        ]
        blocks.append("\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}"]))
    return "\n\n".join(blocks) + "\n"


def _marked(cell: Cell, escape: Callable[[str], str], best: str, tied: str) -> str:
    text = escape(cell.text)
    text = {BEST: best, TIED: tied, "": "{}"}[cell.mark].format(text)
    return f"{text} ({escape(cell.remark)})" if cell.remark else text


def _in_markdown(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text.replace("\n", " "))


_LATEX = {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "±": "$\\pm$",
    "≤": "$\\le$",
    "−": "$-$",
    "–": "--",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def _in_latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text.replace("\n", " "))
