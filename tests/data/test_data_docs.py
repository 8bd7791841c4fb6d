"""docs/data.md names a test for everything that can go wrong; the tests must be there."""

import pathlib
import re

TESTS = pathlib.Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "data.md"
# What no table may lack; the words are those of its first column.
FAILURES = (
    "broken or cut gzip", "not UTF-8", "NUL bytes", "100 MB", "empty documents", "twice",
    "edited by hand", "flipped byte, at open", "`--verify`", "two at once", "ends early", "silence",
    "404", "500", "wrong checksum", "killed", "too small", "kill -9", "another tokenizer",
)  # fmt: skip


def rows():
    """(what goes wrong, what happens, [(file, test), ...]) of each row of the tables."""
    _, _, section = PAGE.read_text().partition("\n## What goes wrong and what happens\n")
    lines = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [
        (what, happens, re.findall(r"`(test_\w+\.py)::(test_\w+)`", tests))
        for what, happens, tests in cells
        if what not in ("what", "---")
    ]


def test_every_failure_has_a_test_that_exists():
    found = rows()
    assert len(found) >= len(FAILURES)
    for what, happens, tests in found:
        assert happens and tests, what
        for file, name in tests:
            source = next(TESTS.rglob(file)).read_text()
            assert re.search(rf"^def {name}\(", source, re.MULTILINE), f"{what}: {file}::{name}"


def test_no_failure_is_left_out():
    listed = "\n".join(what for what, _, _ in rows())
    assert [words for words in FAILURES if words not in listed] == []
