"""The table that sets model, baselines and real text side by side."""

import numpy as np

from flm_jax.evals import verdict
from flm_jax.evals.base import format_value
from flm_jax.report.markup import details, escape, is_number, note, number
from flm_jax.report.pair import pair
from flm_jax.report.workdir import Json, Run, why

_KINDS = {"model": "model", "yardstick": "baseline", "data": "real text"}
_VARIETY = "sample_entropy"
VARIED = 0.75  # of real text's entropy in a sample; below, a text repeats itself


def table(run: Run) -> tuple[str, str]:
    """The verdict with its pictures, and the results table with a note on each column."""
    columns, rows = run.results.get("columns", []), run.results.get("rows", [])
    if not rows:
        return note(why(run, "results.json", "a table")), ""
    data = real_text(rows)
    poor = [fault(row, i, rows) for i, row in enumerate(rows)]
    marks = {
        column["key"]: _marked(rows, poor, column, data.get(column["key"])) for column in columns
    }
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
        kind = ", ".join(filter(None, (_KINDS.get(row["kind"], str(row["kind"])), poor[i])))
        lines.append(
            f'<tr class="{escape(row["kind"])}"><th scope="row">{escape(row["name"])}'
            f"<small>{escape(kind)}</small></th>{cells}</tr>"
        )
    helps = "".join(
        f"<dt>{escape(c['title'])}</dt><dd>{escape(c.get('help', ''))}</dd>" for c in columns
    )
    body = (
        f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    ) + details("What the columns mean", f'<dl class="help">{helps}</dl>')
    return pair(run) + body, _lead(rows, poor, bool(data))


def _lead(rows: list[Json], poor: list[str], compared: bool) -> str:
    """How to read the table."""
    sizes = sorted({row["tokens"] for row in rows if is_number(row.get("tokens"))})
    said = f"Each row is measured on {number(sizes[0])} tokens. " if len(sizes) == 1 else ""
    if len(sizes) > 1:
        said = "The rows are measured on different numbers of tokens, so entropies of "
        said += "smaller ones come out too low. "
    if compared:
        said += "Small figures are the difference from real text. "
        said += "A bold number is that of the model's rows that is nearest to real text"
    else:
        said += "A bold number is the best of the model's rows"
    if verdict.read(rows):
        said += f", of those as diverse as it (distinct-4 within {verdict.MATCHED:g}): either of "
        said += "likelihood and diversity can be bought with the other"
    elif any(poor):
        said += f", of those with at least {100 * VARIED:.0f} % of its entropy in a sample: "
        said += "a model that repeats a few words has many known ones"
    return f"{said}."


def real_text(rows: list[Json]) -> Json:
    """The values of real text, by column: of fresh text where there is any; {} without."""
    return next((row["values"] for row in reversed(rows) if row["kind"] == "data"), {})


def fault(row: Json, place: int, rows: list[Json]) -> str:
    """Why a model's row cannot be the best in anything; "" for one that can, and for others."""
    if row["kind"] != "model":
        return ""
    pairs = verdict.read(rows)
    if pairs is not None:
        point = pairs.points.get(place)
        return verdict.bought(point, pairs.real) if point else "without a likelihood"
    return "repeats itself" if repeats(row, real_text(rows)) else ""


def default_row(rows: list[Json]) -> Json | None:
    """The model at the number of steps that it takes when none is named.

    That is the last of sampler.steps, as for `FlowModel.generate`, and not the row that looks best.
    """
    return next((row for row in reversed(rows) if row["kind"] == "model"), None)


def repeats(row: Json, data: Json) -> bool:
    """Whether a model's texts have far less variety than real text, whose values are `data`."""
    value, real = row["values"].get(_VARIETY), data.get(_VARIETY)
    if row["kind"] != "model" or not is_number(value) or not is_number(real):
        return False
    return value < VARIED * real


def best_of(values: list[float], column: Json, data: float | None) -> int:
    """Return the index of the best value of this column: the nearest to real text's, `data`.

    Without it the highest or the lowest, as the column says.
    """
    if is_number(data):
        return int(np.argmin([abs(value - data) for value in values]))
    return int(np.argmin(values) if column.get("better") == "lower" else np.argmax(values))


def _marked(rows: list[Json], poor: list[str], column: Json, data: float | None) -> set[int]:
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
    values = [value for i, value in models.items() if not poor[i]]
    if not values:
        return set()
    best = values[best_of(values, column, data)]
    return {i for i, value in models.items() if value == best and not poor[i]}


def _cell(row: Json, column: Json, data: float | None, best: bool) -> str:
    value = row["values"].get(column["key"])
    text = escape(format_value(value, column).replace(" ", "\u00a0"))
    if best:
        text = f"<b>{text}</b>"
    if row["kind"] != "data" and is_number(value) and is_number(data):
        scale = 100 if column.get("unit") == "share" else 1
        text += f"<small>{scale * (value - data):+.{1 if scale == 100 else 2}f}</small>"
    return f"<td>{text.replace('-', '−')}</td>"
