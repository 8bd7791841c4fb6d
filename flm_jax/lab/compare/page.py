"""report.html of a comparison: one file with everything inside, from results.json."""

from collections.abc import Sequence

import numpy as np

from flm_jax.lab.compare import curves, tables
from flm_jax.lab.compare.findings import Results
from flm_jax.lab.compare.tables import BEST, TIED, Cell, Table
from flm_jax.report.charts import Series, chart
from flm_jax.report.markup import details, escape, facts, note, plural, section, tabs
from flm_jax.report.page import document
from flm_jax.report.svg import Picture

_LEAD = (
    "Likelihood can be bought with diversity, so methods are compared at equal diversity: all "
    "settings of a method are pooled, the best of them kept, and its likelihood is read where its "
    "texts are as diverse as real ones. Diversity within a sample (entropy) and between samples "
    "(distinct-4) are two different things; a method has to be good at both."
)


def render(results: Results, said: Sequence[str], made: Sequence[Table]) -> str:
    """The whole page as text."""
    pictures = curves.every(results)
    parts = [
        ("result", "Result", _result(results, pictures, made)),
        ("evaluations", "By number of evaluations", _by_number(results, pictures, made)),
        ("metrics", "Other metrics", _tables(made, "metrics", "landmarks")),
        ("judges", "Judges", _judges(results, made)),
        ("about", "How this was made", _about(results)),
    ]
    verdicts = "".join(f"<li>{escape(sentence)}</li>" for sentence in said)
    top = (
        f'<header><p class="over">comparison of language models</p>'
        f"<h1>{escape(results['title'])}</h1>"
        f'<ul class="verdict">{verdicts}</ul><p class="lead">{escape(_LEAD)}</p></header>'
    )
    sections = "".join(section(name, title, body) for name, title, body in parts)
    return document(results["title"], top, [(name, title) for name, title, _ in parts], sections)


def _result(results: Results, pictures: Sequence[Picture], made: Sequence[Table]) -> str:
    shown = [_chart(one) for one in pictures if one.name.startswith("milliseconds")]
    shown += [_chart(one) for one in pictures if one.name.startswith("evaluations")]
    pairs = "".join(f'<div class="pair">{"".join(shown[i : i + 2])}</div>' for i in (0, 2))
    return note(tables.LEGEND) + _tables(made, "at_entropy", "at_distinct_4") + pairs


def _by_number(results: Results, pictures: Sequence[Picture], made: Sequence[Table]) -> str:
    panels = []
    for number in tables.numbers(results):
        own = [_chart(one) for one in pictures if one.name in _front_names(number)]
        body = _tables(made, f"evaluations_{number}") + f'<div class="pair">{"".join(own)}</div>'
        panels.append((plural(number, "evaluation"), body))
    shown = [tabs(f"numbers-{i}", panels[i : i + 12]) for i in range(0, len(panels), 12)]
    return "".join(shown) or note("nothing was measured")


def _front_names(number: int) -> list[str]:
    return [f"front_{axis}_{number}" for axis in tables.NAMES]


def _judges(results: Results, made: Sequence[Table]) -> str:
    shown = _tables(made, "judges_entropy", "judges_distinct_4", "judges_order")
    return shown or note(f"One judge: {results['judges'][0]['name']}.")


def _about(results: Results) -> str:
    judges = ", ".join(
        judge["name"] + " (the truth itself)" * judge["exact"] for judge in results["judges"]
    )
    counts = sorted({row["count"] for row in results["points"]})
    known = [
        ("judges", judges),
        ("files of samples", len(results["points"])),
        ("samples in a file", f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else counts[0]),
        ("samples of a group (distinct-n)", results["settings"]["group"]),
        ("resamples", results["settings"]["resampled"]),
        *((str(name), _plain(value)) for name, value in results["about"].items()),
    ]
    return facts(known) + details("Every point", _points(results))


def _points(results: Results) -> str:
    columns = [results["headline"], *tables.NAMES]
    rows = tuple(
        (
            f"{row['method']}, {row['evaluations']}",
            (
                Cell(str(row["seed"])),
                Cell(row["knobs"]),
                *(Cell(tables.show(name, row["values"].get(name))) for name in columns),
                Cell(str(row["count"])),
                Cell(row["samples"], remark=row["sha256"][:12]),
            ),
        )
        for row in results["points"]
    )
    head = ("seed", "sampler", "nats / token", *tables.NAMES.values(), "samples", "file")
    return _html(Table("points", "", head, rows))


def _tables(made: Sequence[Table], *names: str) -> str:
    return "".join(_html(table) for name in names for table in made if table.name == name)


def _html(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in table.head)
    rows = "".join(
        f'<tr class="{"data" if name == "real text" else "model"}"><th scope="row">{escape(name)}'
        f"</th>{''.join(map(_cell, cells))}</tr>"
        for name, cells in table.rows
    )
    title = f"<h3>{escape(table.title)}</h3>" if table.title else ""
    return (
        f'{title}<div class="wide"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{note(table.note) if table.note else ''}"
    )


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    text = {BEST: f"<b>{text}</b>", TIED: f"<em>{text}</em>"}.get(cell.mark, text)
    remark = f"<small>{escape(cell.remark)}</small>" if cell.remark else ""
    return f"<td>{text}{remark}</td>"


def _chart(picture: Picture) -> str:
    series = list(picture.series)
    if picture.level is not None:
        ends = [min(one.x[0] for one in series), max(one.x[-1] for one in series)]
        x, y = [*map(float, ends)], [picture.level] * 2
        series.append(Series("real text", np.array(x), np.array(y), colour="s2"))
    return chart(
        picture.name,
        picture.title,
        series,
        picture.x_label,
        picture.y_label,
        log_switch=picture.log_x,
        log_first=picture.log_x,
        band=picture.band,
    )


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_plain(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(str(_plain(one)) for one in value)
    return value
