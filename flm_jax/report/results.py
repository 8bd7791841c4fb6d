"""The table that sets model, yardsticks and real text side by side."""

import numpy as np

from flm_jax.evals.base import format_value
from flm_jax.report.markup import details, escape, is_number, note, number
from flm_jax.report.workdir import Run, why

_KINDS = {"model": "model", "yardstick": "yardstick", "data": "real text"}


def table(run: Run) -> tuple[str, str]:
    """The results table with a note on each column."""
    columns, rows = run.results.get("columns", []), run.results.get("rows", [])
    if not rows:
        return note(why(run, "results.json", "a table")), ""
    data = next((row["values"] for row in rows if row["kind"] == "data"), {})
    marks = {column["key"]: _marked(rows, column, data.get(column["key"])) for column in columns}
    head = "".join(
        f'<th scope="col" title="{escape(c.get("help", ""))}">{escape(c["title"])}</th>'
        for c in columns
    )
    lines = []
    for i, row in enumerate(rows):
        cells = "".join(
            _cell(row, column, data.get(column["key"]), i in marks[column["key"]])
            for column in columns
        )
        kind = escape(_KINDS.get(row["kind"], row["kind"]))
        lines.append(
            f'<tr class="{escape(row["kind"])}"><th scope="row">{escape(row["name"])}'
            f"<small>{kind}</small></th>{cells}</tr>"
        )
    helps = "".join(
        f"<dt>{escape(c['title'])}</dt><dd>{escape(c.get('help', ''))}</dd>" for c in columns
    )
    sizes = sorted({row["tokens"] for row in rows if is_number(row.get("tokens"))})
    measured = f"Each row is measured on {number(sizes[0])} tokens. " if len(sizes) == 1 else ""
    if len(sizes) > 1:
        measured = "The rows are measured on different numbers of tokens, so entropies of "
        measured += "smaller ones come out too low. "
    body = (
        f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    ) + details("What the columns mean", f'<dl class="help">{helps}</dl>')
    if data:
        measured += "Small figures are the difference from real text. "
    return body, measured + "Bold is the best row of the model."


def best_of(values: list[float], column: dict, data: float | None) -> int:
    """Return the index of the best value of this column; `data` is real text's value."""
    if column.get("better") == "data" and data is not None:
        return int(np.argmin([abs(value - data) for value in values]))
    return int(np.argmin(values) if column.get("better") == "lower" else np.argmax(values))


def _marked(rows: list[dict], column: dict, data: float | None) -> set[int]:
    """Indices of the best model rows; none where all are alike or the column has no direction."""
    models = {
        i: row["values"][column["key"]]
        for i, row in enumerate(rows)
        if row["kind"] == "model" and is_number(row["values"].get(column["key"]))
    }
    if not column.get("better") or (column["better"] == "data" and data is None):
        return set()
    if len(set(models.values())) < 2:
        return set()
    values = list(models.values())
    best = values[best_of(values, column, data)]
    return {i for i, value in models.items() if value == best}


def _cell(row: dict, column: dict, data: float | None, best: bool) -> str:
    value = row["values"].get(column["key"])
    text = escape(format_value(value, column).replace(" ", "\u00a0"))
    if best:
        text = f"<b>{text}</b>"
    if row["kind"] != "data" and is_number(value) and is_number(data):
        scale = 100 if column.get("unit") == "share" else 1
        text += f"<small>{scale * (value - data):+.{1 if scale == 100 else 2}f}</small>"
    return f"<td>{text.replace('-', '−')}</td>"
