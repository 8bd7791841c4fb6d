"""Draws docs/architecture.svg and writes the table of imports of docs/code.md.

    python docs/architecture.py

Both follow tests/repository/test_imports.py, whose table is enforced on every file; a test
(tests/repository/test_docs.py) fails when they are behind it.
"""

import html
import importlib.util
import pathlib
from types import ModuleType

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE, PICTURE = ROOT / "docs/code.md", ROOT / "docs/architecture.svg"
BEGIN, END = "<!-- made by docs/architecture.py -->\n", "<!-- end -->"
# What a room is, in a few words.
ABOUT = {
    "flow": "the mathematics",
    "losses": "objectives",
    "samplers": "update rules",
    "models": "network, by flax",
    "config": "files and flags",
    "host": "the machine",
    "tokenizers": "text to ids",
    "data": "files to batches, by grain",
    "checkpoint": "saved steps, by orbax",
    "interop": "official files",
    "evals": "is it good?",
    "report": "pages of a run",
    "experiment": "config to objects",
    "inference": "a trained model",
    "training": "loop, step, workdir",
    "lab": "judges the library",
    "cli": "one file a command",
}
LAYERS = "open to all", "parts", "with data or files", "put together", "trained", "commands, tools"
LEFT, WIDTH, BAND, BOX, GAP = 150, 960, 74, 50, 8
STYLE = """
  svg { font-family: system-ui, sans-serif; }
  .paper { fill: #ffffff; } .ink { fill: #1f2328; } .faint { fill: #656d76; }
  .room { fill: #eef1f4; stroke: #c5ccd3; } .pure { fill: #d6f0e7; stroke: #7fc4ad; }
  .band { stroke: #d8dee4; }
  .name { font: bold 14px ui-monospace, Menlo, Consolas, monospace; }
  .small { font-size: 11px; }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #161b22; } .ink { fill: #e6edf3; } .faint { fill: #9198a1; }
    .room { fill: #252b33; stroke: #444c56; } .pure { fill: #143d33; stroke: #2f7d66; }
    .band { stroke: #30363d; }
  }
"""


def rules() -> ModuleType:
    """The module with the table: tests/repository/test_imports.py."""
    path = ROOT / "tests/repository/test_imports.py"
    spec = importlib.util.spec_from_file_location("import_rules", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def layers(table: ModuleType) -> list[list[str]]:
    """The rooms from the lowest layer to the highest, each in the order of the table."""
    named = [set(table.OPEN), table.LAYER_1, table.LAYER_2, table.LAYER_3, {"training"}]
    rooms = [room for room in table.MAY_IMPORT if room not in ("flm_jax", "configs", "__main__")]
    found = [[room for room in rooms if room in layer] for layer in named]
    return [*found, [room for room in rooms if not any(room in layer for layer in named)]]


def picture(table: ModuleType) -> str:
    """The rooms as an SVG, the lowest layer at the bottom."""
    rows = layers(table)
    height = BAND * len(rows) + 64
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}">',
        f"<style>{STYLE}</style>",
        '<rect width="100%" height="100%" rx="8" class="paper"/>',
    ]
    for level, rooms in enumerate(rows):
        y = BAND * (len(rows) - 1 - level) + 12
        parts.append(_text(16, y + 22, f"{level}", "name ink"))
        parts.append(_text(34, y + 22, LAYERS[level], "small faint"))
        if level:
            line = y + BAND - (BAND - BOX) / 2
            parts.append(f'<path d="M16 {line}H{WIDTH - 16}" class="band"/>')
        width = min(150, (WIDTH - LEFT - 16 + GAP) / len(rooms) - GAP)
        for i, room in enumerate(rooms):
            x = LEFT + i * (width + GAP)
            pure = table.MAY_IMPORT[room] <= {"flow"} and room in table.LAYER_1 - {"models", "host"}
            kind = "pure" if pure else "room"
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BOX}" rx="6" '
                f'class="{kind}"/>'
            )
            about = ABOUT.get(room, "")
            middle = x + width / 2
            parts.append(_text(middle, y + (21 if about else 30), room, "name ink", "middle"))
            parts.append(_text(middle, y + 38, about, "small faint", "middle"))
    y = BAND * len(rows) + 22
    parts.append(
        f'<rect x="{LEFT}" y="{y}" width="16" height="16" rx="3" class="pure"/>'
        + _text(LEFT + 24, y + 13, "JAX only: no flax, no config, no files", "small faint")
        + _text(
            WIDTH - 16,
            y + 13,
            "a room imports what its row of the table names, never from a higher layer",
            "small faint",
            "end",
        )
    )
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    place = f'x="{x:.1f}" y="{y}" text-anchor="{anchor}"'
    return f'<text {place} class="{kind}">{html.escape(text)}</text>'


def imports(table: ModuleType) -> str:
    """The table of imports as Markdown."""
    groups = {
        "layer 1": table.LAYER_1,
        "layer 2": table.LAYER_2,
        "layer 3": table.LAYER_3,
    }
    lines = ["| layer | room | may import, beside layer 0 |", "|---|---|---|"]
    for level, rooms in enumerate(layers(table)):
        if not level:
            shown = ", ".join(f"`{room}`" for room in rooms)
            lines.append(f"| 0 | {shown}: plain Python, open to all | nothing |")
            continue
        for room in rooms:
            lines.append(f"| {level} | `{room}` | {_shown(set(table.MAY_IMPORT[room]), groups)} |")
    return "\n".join(lines) + "\n"


def _shown(rooms: set[str], groups: dict[str, set[str]]) -> str:
    """Rooms in words: whole layers by their names."""
    said = []
    for name, group in groups.items():
        if len(rooms & group) == len(group):
            said.append(name)
            rooms = rooms - group
    return ", ".join([*said, *(f"`{room}`" for room in sorted(rooms))]) or "nothing"


def page(text: str, table: ModuleType) -> str:
    """The page with its table of imports renewed; ValueError if it has no place for it."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{imports(table)}\n{END}{after}"


if __name__ == "__main__":
    known = rules()
    PICTURE.write_text(picture(known), encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), known), encoding="utf-8")
