"""Puts the parts together: one HTML file with its style and script inside."""

from collections.abc import Callable
from importlib import resources

from flm_jax.report import sections
from flm_jax.report.markup import escape, note, section
from flm_jax.report.workdir import Run

PARTS: dict[str, Callable[[Run], str]] = {
    "Samples": sections.samples,
    "Results": sections.table,
    "Training": sections.curves,
    "From noise to text": sections.denoising,
    "Samples during training": sections.progress,
    "Corpus": sections.corpus,
    "Time": sections.timings,
    "Run it again": sections.reproduce,
}


def render(run: Run) -> str:
    """Return the whole page as text."""
    parts = {title: _guarded(title, part, run) for title, part in PARTS.items()}
    links = "".join(
        f'<a href="#{body.split(chr(34))[1]}">{escape(title)}</a>' for title, body in parts.items()
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(run.path.name)} · flm_jax</title>\n"
        f"<style>\n{_file('style.css')}</style>\n</head>\n<body>\n<main>\n"
        f"{_guarded('Run', sections.headline, run)}<nav>{links}</nav>\n{''.join(parts.values())}"
        f"</main>\n<script>\n{_file('script.js')}</script>\n</body>\n</html>\n"
    )


def _guarded(title: str, part: Callable[[Run], str], run: Run) -> str:
    """Draw one part; a file of an unexpected form (another version's, edited) costs that part only."""
    try:
        return part(run)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"This part could not be drawn: {type(error).__name__}: {error}"
        return section(title.lower().replace(" ", "-"), title, note(reason))


def _file(name: str) -> str:
    return resources.files("flm_jax.report").joinpath(name).read_text(encoding="utf-8")
