"""Looks at text as models get it: how much there is, how it is tokenised, statistics, examples.

    flm inspect --config=configs/quickstart.py [--rows=3] [--split=train]
    flm inspect DIR [--html=page.html]

DIR is a folder that flm_jax.data.prepare made, or the --data_dir that holds several.
"""

import pathlib
from collections.abc import Iterator, Mapping, Sequence

from absl import flags

from flm_jax import config, data, errors, tokenizers
from flm_jax.cli import flags as command_line
from flm_jax.data import page, statistics
from flm_jax.data.rows import Rows, prepared_below
from flm_jax.host import files

CONFIG = command_line.config_flag()
ROWS = flags.DEFINE_integer("rows", 3, "packed rows to show", lower_bound=0)
SPLIT = flags.DEFINE_string("split", "train", "the split that the rows are taken from")
HTML = flags.DEFINE_string("html", "", "also write a page with pictures to this file")

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


def main(argv: list[str]) -> None:
    """Command line."""
    if len(argv) > 2:
        raise errors.UserError(f"unexpected word {argv[2]!r}; flags start with --")
    if HTML.value:
        files.check_writable(pathlib.Path(HTML.value).expanduser())
    if argv[1:] and CONFIG.present:
        raise errors.UserError(f"give either the folder {argv[1]} or --config, not both")
    if argv[1:]:
        _folders(pathlib.Path(argv[1]).expanduser())
    elif CONFIG.present:
        _config()
    else:
        raise errors.UserError(
            "nothing to look at; give a folder that flm_jax.data.prepare made, or --config=FILE"
        )


def _folders(folder: pathlib.Path) -> None:
    every = prepared_below(folder)
    wanted = [rows for rows in every if rows.manifest["split"] == SPLIT.value]
    if not wanted and flags.FLAGS[SPLIT.name].present:
        splits = ", ".join(sorted({rows.manifest["split"] for rows in every}))
        raise errors.UserError(f"no split {SPLIT.value!r} in {folder}; choose one of {splits}")
    found = []
    for rows in wanted or every:
        tokenizer = statistics.tokenizer_of(rows)
        found.append((rows, tokenizer, statistics.measure(rows, tokenizer.vocab_size)))
    _write_page(found)
    for one in found:
        print("\n".join(report_folder(*one, ROWS.value)))


def _config() -> None:
    settings = config.to_dict(CONFIG.value)
    plan = data.plan(
        settings["data"],
        settings["tokenizer"],
        splits=data.load_corpus(settings["data"]).splits,
    )
    rows, missing = {}, {}
    for split, order in plan.orders.items():
        try:
            rows[split] = data.prepare_split(order, plan.folder)[0]
        except errors.UserError as error:
            if split in ("train", SPLIT.value):
                raise
            missing[split] = str(error)
    loaded = data.Data(plan.corpus, plan.tokenizer, rows)
    lines = list(report(loaded, missing, SPLIT.value, ROWS.value))  # refuses an unknown split
    chosen = rows[SPLIT.value]
    if HTML.value:
        seen = statistics.measure(chosen, plan.tokenizer.vocab_size)
        _write_page([(chosen, plan.tokenizer, seen)])
    print("\n".join(lines))


def _write_page(found: Sequence) -> None:
    if HTML.value:
        path = pathlib.Path(HTML.value).expanduser()
        files.write_atomically(path, page.page(found, ROWS.value))
        print(f"pictures in {path}")


if __name__ == "__main__":
    command_line.run_main(main)
