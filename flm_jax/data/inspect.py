"""Looks at the text of a config: how much there is of it, how it is tokenised, and examples.

python -m flm_jax.data.inspect --config=configs/quickstart.py [--rows=3] [--split=train]
"""

from collections.abc import Iterator, Mapping

from absl import flags

from flm_jax import config, data, errors, tokenizers

CONFIG = config.config_flag()
ROWS = flags.DEFINE_integer("rows", 3, "packed rows to show", lower_bound=0)
SPLIT = flags.DEFINE_string("split", "train", "the split that the rows are taken from")

_WIDTH = 160  # characters of a document or row that are shown


def report(loaded: data.Data, split: str, count: int) -> Iterator[str]:
    """Lines for people: the corpus, its splits, the tokenizer, the packed rows, `count` rows.

    Raises:
      UserError: `split` is not packed.
    """
    if split not in loaded.rows:
        raise errors.UserError(f"no split {split!r}; choose one of {', '.join(loaded.rows)}")
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
    yield f"first document of {split}: {_short(loaded.corpus.source(split)[0])}"
    for number in range(min(count, len(loaded.rows[split]))):
        yield f"row {number} of {split}: {_row(loaded.rows[split][number], tokenizer)}"


def _packed(name: str, rows: data.Rows, characters: Mapping[str, int]) -> str:
    text_tokens = rows.manifest["text_tokens"]
    line = f"rows       {name}: {len(rows):,} of length {rows.length}, {rows.tokens:,} tokens"
    return f"{line}, {characters[name] / max(1, text_tokens):.2f} characters per token"


def _row(row_L, tokenizer: tokenizers.Tokenizer) -> str:
    """The text of a row; documents are set apart by a bar."""
    parts = data.split_row(row_L, tokenizer.bos_id, tokenizer.eos_id)
    return _short(" | ".join(map(tokenizer.decode, parts)))


def _short(text: str) -> str:
    shown = text.replace("\n", " ")
    return shown if len(shown) <= _WIDTH else shown[:_WIDTH] + " ..."


def main(argv: list[str]) -> None:
    """Command line."""
    if argv[1:]:
        raise errors.UserError(f"unexpected word {argv[1]!r}; flags start with --")
    settings = config.to_dict(CONFIG.value)
    corpus = data.load_corpus(settings["data"])
    loaded = data.load_data(settings["data"], settings["tokenizer"], splits=corpus.splits)
    for line in report(loaded, SPLIT.value, ROWS.value):
        print(line)


if __name__ == "__main__":
    config.run_main(main)
