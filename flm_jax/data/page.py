"""An HTML page about prepared rows: numbers, two histograms as pictures, examples. No script."""

import html
from collections.abc import Iterator, Sequence

import numpy as np

from flm_jax import tokenizers
from flm_jax.data import statistics
from flm_jax.data.rows import Rows

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#667085;--line:#d5dae1;--bar:#2f6fb5;--back:#fff}
@media (prefers-color-scheme:dark){
:root{--ink:#e6e9ee;--soft:#98a2b3;--line:#39424e;--bar:#6ea8e6;--back:#15191f}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back);margin:2rem auto;
max-width:60rem;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.5rem;overflow-wrap:anywhere}
table{border-collapse:collapse}td,th{text-align:left;padding:.15rem 1rem .15rem 0;
border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere}
th{font-weight:400;color:var(--soft)}
figure{margin:1.5rem 0}figcaption{font-weight:600}figure p{color:var(--soft);margin:.2rem 0}
svg{width:100%;height:auto;display:block}svg rect{fill:var(--bar)}
svg text{fill:var(--soft);font-size:11px}svg path{stroke:var(--line)}
pre{white-space:pre-wrap;overflow-wrap:anywhere;border-left:3px solid var(--line);
padding-left:.8rem;font-size:13px}
mark{background:none;color:var(--bar);font-weight:600}
"""
_WIDTH, _HEIGHT, _FOOT, _SIDE = 900, 240, 34, 30  # of a picture
_LABELS = 16


def page(
    found: Sequence[tuple[Rows, tokenizers.Tokenizer, statistics.Statistics]], rows: int
) -> str:
    """The page as text; `rows` examples of each."""
    body = "".join(part for one in found for part in _section(*one, rows))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Prepared text</title><style>{_STYLE}</style><h1>Prepared text</h1>{body}</html>\n"
    )


def _section(
    rows: Rows, tokenizer: tokenizers.Tokenizer, seen: statistics.Statistics, count: int
) -> Iterator[str]:
    facts = rows.manifest
    yield f"<h2>{_escape(facts['corpus'])}, {_escape(facts['split'])}</h2>"
    yield _table([*facts_of(rows), *_numbers(seen)])
    lengths = facts["document_lengths"]
    yield _histogram(
        "Length of documents",
        "tokens of a document, without EOS; bins grow by quarters of a doubling",
        [*map(str, lengths["edges"])],
        lengths["counts"],
    )
    counts, edges = np.histogram(seen.block_entropies_N, bins=40)
    yield _histogram(
        "Unigram entropy of blocks",
        f"nats, within each of {seen.looked_at:,} blocks; what samples of a model should have, too",
        [f"{edge:.2f}" for edge in edges[:-1]],
        counts.tolist(),
    )
    yield "<h3>Commonest tokens</h3>" + _table(
        (repr(tokenizer.piece(token)), f"{100 * share:.2f} %") for token, share in seen.most_common
    )
    for number in range(min(count, len(rows))):
        text = _escape(statistics.visible(rows[number], tokenizer))
        for special in tokenizer.specials:
            name = _escape(tokenizer.piece(special))
            text = text.replace(name, f"<mark>{name}</mark>")
        yield f"<h3>Block {number}</h3><pre>{text}</pre>"


def facts_of(rows: Rows) -> list[tuple[str, str]]:
    """(what, value) of the manifest, for people."""
    facts = rows.manifest
    return [
        ("folder", str(rows.path)),
        ("documents", f"{facts['documents']:,}"),
        ("tokens of text", f"{facts['text_tokens']:,}"),
        ("blocks", f"{len(rows):,} of {rows.length} tokens, {facts['packing']}"),
        ("shards", f"{len(facts['shards'])}"),
        ("tokenizer", f"{facts['tokenizer']}, {facts['tokenizer_fingerprint'][:12]}"),
        ("fingerprint of the tokens", rows.fingerprint[:12]),
    ]


def _numbers(seen: statistics.Statistics) -> list[tuple[str, str]]:
    return [
        ("blocks looked at", f"{seen.looked_at:,}"),
        ("ids that occur", f"{seen.used:,} of {len(seen.counts_V):,}"),
        ("unigram entropy", f"{seen.unigram_entropy:.3f} nats, all blocks pooled"),
        (
            "unigram entropy of a block",
            f"{seen.block_entropies_N.mean():.3f} nats on average, "
            f"{seen.block_entropies_N.min():.3f} to {seen.block_entropies_N.max():.3f}",
        ),
    ]


def _histogram(title: str, note: str, labels: Sequence[str], counts: Sequence[int]) -> str:
    """A picture of counts; empty bins at both ends are omitted."""
    full = np.flatnonzero(counts)
    first, last = (int(full[0]), int(full[-1]) + 1) if len(full) else (0, 1)
    labels, counts = labels[first:last], counts[first:last]
    step = _WIDTH / len(counts)
    top, shapes = max(max(counts), 1), []
    for i, (label, count) in enumerate(zip(labels, counts, strict=True)):
        height = (_HEIGHT - _FOOT - 16) * count / top
        shapes.append(
            f'<rect x="{i * step + 1:.1f}" y="{_HEIGHT - _FOOT - height:.1f}" '
            f'width="{max(step - 2, 1):.1f}" height="{height:.1f}">'
            f"<title>from {_escape(label)}: {count:,}</title></rect>"
        )
        if i % -(-len(counts) // _LABELS) == 0:
            shapes.append(
                f'<text x="{i * step + 1:.1f}" y="{_HEIGHT - 16}">{_escape(label)}</text>'
            )
    shapes.append(f'<text x="1" y="11">{top:,}</text>')
    shapes.append(f'<path d="M0 {_HEIGHT - _FOOT}.5H{_WIDTH}"/>')
    return (
        f"<figure><figcaption>{_escape(title)}</figcaption><p>{_escape(note)}</p>"
        f'<svg viewBox="0 0 {_WIDTH + _SIDE} {_HEIGHT}" role="img" aria-label="{_escape(title)}">'
        f"{''.join(shapes)}</svg></figure>"
    )


def _table(pairs) -> str:
    rows = (f"<tr><th>{_escape(a)}</th><td>{_escape(b)}</td></tr>" for a, b in pairs)
    return f"<table>{''.join(rows)}</table>"


def _escape(text: str) -> str:
    return html.escape(str(text), quote=True)
