"""Puts the parts together: one HTML file with its style and script inside."""

from collections.abc import Callable, Sequence
from importlib import resources

from flm_jax.report import curves, facts, headline, results, texts
from flm_jax.report.markup import escape, note, section
from flm_jax.report.workdir import Run

# Identifier, title and a function from a Run to (HTML, leading text as plain text).
PARTS: tuple[tuple[str, str, Callable[[Run], tuple[str, str]]], ...] = (
    ("samples", "Samples", texts.samples),
    ("results", "Results", results.table),
    ("curves", "Training", curves.curves),
    ("strip", "From noise to text", texts.denoising),
    ("progress", "Samples during training", texts.progress),
    ("corpus", "Corpus", facts.corpus),
    ("time", "Time", facts.timings),
    ("reproduce", "Run it again", facts.reproduce),
)
_STRANGE = (KeyError, TypeError, ValueError, AttributeError, IndexError)


def render(run: Run) -> str:
    """Return the whole page as text."""
    try:
        top = headline.headline(run)
    except _STRANGE as error:
        top = f"<header><h1>{escape(run.path.name)}</h1>{_not_drawn(error)}</header>"
    links = [(name, title) for name, title, _ in PARTS]
    sections = "".join(section(name, title, *_draw(part, run)) for name, title, part in PARTS)
    return document(run.path.name, top, links, sections)


def document(title: str, top: str, links: Sequence[tuple[str, str]], sections: str) -> str:
    """Return a whole page: header, links to its sections (identifier, title), and these."""
    listed = "".join(f'<a href="#{name}">{escape(text)}</a>' for name, text in links)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)} · flm_jax</title>\n"
        f"<style>\n{_files('colours.css', 'style.css', 'strip.css')}</style>\n</head>\n<body>\n"
        "<main>\n"
        f"{top}<nav>{listed}</nav>\n{sections}"
        '</main>\n<script type="module">\n'
        f"{_files('player.js', 'script.js')}</script>\n</body>\n</html>\n"
    )


def _draw(part: Callable[[Run], tuple[str, str]], run: Run) -> tuple[str, str]:
    """Draw a part; a file of unexpected form (edited, of another version) costs that part only."""
    try:
        return part(run)
    except _STRANGE as error:
        return _not_drawn(error), ""


def _not_drawn(error: Exception) -> str:
    return note(f"This part could not be drawn: {type(error).__name__}: {error}")


def _files(*names: str) -> str:
    folder = resources.files("flm_jax.report")
    return "".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names)
