"""What an evaluator is, and the table that sets models, baselines and data side by side.

An evaluator is a callable: token rows in, ``(name, value)`` pairs out, with a `Column` for each
name. `table` runs evaluators over several sets of rows and gives plain JSON for ``results.json``;
`format_table` prints it.
"""

import abc
import dataclasses
import math
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import numpy as np

from flm_jax.contracts import Contract
from flm_jax.host import progress
from flm_jax.tokenizers import Tokenizer

# What evaluators and baselines are fitted on at most: the beginning of the training split. All of
# OpenWebText (8 million documents, 9 billion tokens) would take hours and fill the memory.
TRAINING_ROWS = 100_000
TRAINING_DOCUMENTS = 1_000_000
# What results.json holds: "columns", "rows" (name, kind, tokens, values by column; None where a
# value is undefined), and whatever a command adds.
Results: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Column:
    """How a value is shown: a title, what it means, what a good value is, its unit.

    `better` is "higher", "lower", "data" (the nearer to the data's own value the better) or None;
    `unit` is "share" (shown as a percentage), "nats" or None.
    """

    key: str
    title: str
    help: str
    better: str | None = None
    unit: str | None = None


class Judge(Protocol):
    """Who says how likely a text is.

    Attributes:
      name: for titles of columns: "stories260K", "a 3-gram model".
      tokenizer: of the rows it scores.
      longest: tokens that a row may have, the first included; 0 = any number.
      fingerprint: SHA-256 (hex) that stands for all that decides its scores.
    """

    @property
    def name(self) -> str: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def longest(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def score(self, tokens_NL: np.ndarray) -> np.ndarray:
        """-log p of every token but the first of its row given those before, (N, L - 1) nats."""
        ...


@runtime_checkable
class Featured(Judge, Protocol):
    """A judge that is a network: it tells texts apart in features, too."""

    def features(self, tokens_NL: np.ndarray, ends_N: np.ndarray) -> np.ndarray:
        """Of every row at one position, `ends_N`: float32 (N, D)."""
        ...


class KnownTruth(Judge, Protocol):
    """A judge that is the distribution itself: what it draws is real text, not a guess at it."""

    def sample(self, indices_N: np.ndarray, length: int, seed: int) -> np.ndarray:
        """Fresh rows int32 (N, L); row i depends on the seed and its index only."""
        ...


class Evaluator(Contract, unfinished=True):
    """Measures samples.

    The constructor of an entry of `EVALS` takes tokenizer, train_rows int (R, L), train_documents
    (an iterable of texts), and its own options (`eval_options`).

    Attributes:
      columns: what a call yields, in the order of display.
      corpus: the data set it is for; "" for any.
      costly: asks a network; left out where hundreds of sets of rows are measured.
    """

    columns: tuple[Column, ...]
    corpus: ClassVar[str] = ""
    costly: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, tokens_NL: np.ndarray) -> Iterator[tuple[str, float]]:
        """Yield (name, value) for int rows of shape (N, L); nan where a value is undefined."""


def table(
    evaluators: Sequence[Evaluator], named_tokens: Sequence[tuple[str, str, np.ndarray]]
) -> Results:
    """Return {"columns", "rows"}, plain JSON values, one line per (name, kind, tokens_NL).

    `kind` is "model", "yardstick" (a baseline) or "data". "tokens" tells how many tokens a line
    was measured on: entropies of few tokens come out too low, so compare lines of one size only.
    """
    columns = [column for evaluator in evaluators for column in evaluator.columns]
    rows = []
    for name, kind, tokens_NL in progress.bar(named_tokens, desc="measuring texts", delay=2):
        values = {}
        for evaluator in evaluators:
            values |= {key: _plain(value) for key, value in evaluator(tokens_NL)}
        size = int(np.size(tokens_NL))
        rows.append({"name": name, "kind": kind, "tokens": size, "values": values})
    return {"columns": [dataclasses.asdict(column) for column in columns], "rows": rows}


def format_table(results: Results, width: int | None = None) -> str:
    """Return the table of `table` as aligned plain text, one line per row, titles above.

    Columns beyond `width` characters follow in further blocks with the names of the rows again, so
    nothing is cut. None: the width of the terminal; in a file or pipe all columns side by side.
    """
    if width is None:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    columns = results["columns"]
    lines = [[""] + [column["title"] for column in columns]]
    for row in results["rows"]:
        cells = (format_value(row["values"].get(column["key"]), column) for column in columns)
        lines.append([row["name"], *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    blocks: list[list[int]] = [[]]
    taken = widths[0]
    for i in range(1, len(widths)):
        if blocks[-1] and taken + 2 + widths[i] > width:
            blocks.append([])
            taken = widths[0]
        blocks[-1].append(i)
        taken += 2 + widths[i]

    def text(line: list[str], block: list[int]) -> str:
        cells = (line[i].rjust(widths[i]) for i in block)
        return "  ".join([line[0].ljust(widths[0]), *cells]).rstrip()

    return "\n\n".join("\n".join(text(line, block) for line in lines) for block in blocks)


def format_value(value: float | None, column: Mapping[str, object]) -> str:
    """Return a table cell: 71.3 %, 2.41, or a dash where there is no value."""
    if value is None or not math.isfinite(value):
        return "–"
    if column.get("unit") == "share":
        return f"{100 * value:.1f} %"
    return f"{value:.3g}" if abs(value) >= 1000 else f"{value:.2f}"


def _plain(value: float) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None
