"""Text as models get it: how much there is, how it is tokenised, statistics, examples."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence

from flm_jax import data, errors, tokenizers
from flm_jax.data import page, statistics
from flm_jax.data.rows import Rows, prepared_below
from flm_jax.host import files

_WIDTH = 160  # characters of a document or row that are shown
_COMMON = 8  # tokens


def report(loaded: data.Data, missing: Mapping[str, str], split: str, count: int) -> Iterator[str]:
    """Lines for people: the corpus, its splits, the tokenizer, the packed rows, `count` rows.

    Args:
      missing: why a split is not packed.

    Raises:
      UserError: `split` is not packed.
    """
    if split not in loaded.rows:
        known = ", ".join(loaded.rows)
        raise errors.UserError(missing.get(split) or f"no split {split!r}; choose one of {known}")
    about = loaded.corpus.describe()
    yield f"data set   {about['name']}: {about['kind']}"
    yield f"licence    {about['licence']}"
    for name, documents in about["documents"].items():
        characters = about["characters"][name]
        yield f"{name:<10} {documents:,} documents, {characters:,} characters"
    tokenizer = loaded.tokenizer
    yield f"tokenizer  {tokenizer.name}, {tokenizer.vocab_size:,} ids, {tokenizer.fingerprint[:12]}"
    for name, rows in loaded.rows.items():
        yield _packed(name, rows, about["characters"])
    for name, reason in missing.items():
        yield f"rows       {name}: none, because {reason}"
    seen = statistics.measure(loaded.rows[split], tokenizer.vocab_size)
    yield from _numbers(tokenizer, seen)
    yield f"first document of {split}: {_short(loaded.corpus.source(split)[0])}"
    yield from _examples(loaded.rows[split], tokenizer, split, count)


def report_folder(
    rows: Rows, tokenizer: tokenizers.Tokenizer, seen: statistics.Statistics, count: int
) -> Iterator[str]:
    """Lines for people about one prepared folder."""
    split = rows.manifest["split"]
    yield f"data set   {rows.manifest['corpus']}, {split}"
    for name, value in page.facts_of(rows):
        yield f"{name:<26} {value}"
    yield from _numbers(tokenizer, seen)
    yield from _examples(rows, tokenizer, split, count)


def _numbers(tokenizer: tokenizers.Tokenizer, seen: statistics.Statistics) -> Iterator[str]:
    blocks = seen.block_entropies_N
    ids = f"{seen.used:,} of {len(seen.counts_V):,} ids occur"
    yield f"tokens     {ids} in {seen.looked_at:,} blocks"
    common = ", ".join(
        f"{tokenizer.piece(token)!r} {100 * share:.1f} %"
        for token, share in seen.most_common[:_COMMON]
    )
    yield f"commonest  {common}"
    yield (
        f"entropy    {seen.unigram_entropy:.3f} nats over all tokens, {blocks.mean():.3f} within a "
        f"block ({blocks.min():.3f} to {blocks.max():.3f})"
    )


def _packed(name: str, rows: Rows, characters: Mapping[str, int]) -> str:
    text_tokens = rows.manifest["text_tokens"]
    line = f"rows       {name}: {len(rows):,} of length {rows.length}, {rows.tokens:,} tokens"
    return f"{line}, {characters[name] / max(1, text_tokens):.2f} characters per token"


def _examples(rows: Rows, tokenizer: tokenizers.Tokenizer, split: str, count: int) -> Iterator[str]:
    for number in range(min(count, len(rows))):
        text = statistics.visible(rows[number], tokenizer)
        yield f"row {number} of {split}: {_short(text)}"


def _short(text: str) -> str:
    shown = text.replace("\n", " ")
    return shown if len(shown) <= _WIDTH else shown[:_WIDTH] + " ..."


def of_folders(
    folder: pathlib.Path, split: str | None, count: int, html: pathlib.Path | None = None
) -> Iterator[str]:
    """Lines about the prepared rows of a split below a folder; without one, train or all.

    Args:
      html: also write a page with pictures to this file.

    Raises:
      UserError: no prepared rows, or none of `split`.
    """
    every = prepared_below(folder)
    wanted = [rows for rows in every if rows.manifest["split"] == (split or "train")]
    if not wanted and split:
        splits = ", ".join(sorted({rows.manifest["split"] for rows in every}))
        raise errors.UserError(f"no split {split!r} in {folder}; choose one of {splits}")
    found: list[tuple[Rows, tokenizers.Tokenizer, statistics.Statistics]] = []
    for rows in wanted or every:
        tokenizer = statistics.tokenizer_of(rows)
        found.append((rows, tokenizer, statistics.measure(rows, tokenizer.vocab_size)))
    yield from _write_page(found, html, count)
    for one in found:
        yield from report_folder(*one, count)


def of_config(
    settings: Mapping, split: str, count: int, html: pathlib.Path | None = None
) -> Iterator[str]:
    """Lines about the text of a config, given as its sections; its rows are packed for it."""
    plan = data.plan(
        settings["data"],
        settings["tokenizer"],
        splits=data.load_corpus(settings["data"]).splits,
    )
    rows, missing = {}, {}
    for name, order in plan.orders.items():
        try:
            rows[name] = data.prepare_split(order, plan.folder)[0]
        except errors.UserError as error:
            if name in ("train", split):
                raise
            missing[name] = str(error)
    loaded = data.Data(plan.corpus, plan.tokenizer, rows)
    lines = list(report(loaded, missing, split, count))  # refuses an unknown split
    if html is not None:
        seen = statistics.measure(rows[split], plan.tokenizer.vocab_size)
        yield from _write_page([(rows[split], plan.tokenizer, seen)], html, count)
    yield from lines


def _write_page(found: Sequence, html: pathlib.Path | None, count: int) -> Iterator[str]:
    if html is not None:
        files.write_atomically(html, page.page(found, count))
        yield f"pictures in {html}"
