"""BERT's lower-casing WordPiece from a local vocab.txt, with the ids of the official models."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Sequence

from flm_jax import errors
from flm_jax.host.download import Download
from flm_jax.tokenizers import base, library, vocabulary_files

_FILE = "vocab.txt"
_HUB_NAMES = ("bert-base-uncased", "google-bert/bert-base-uncased")
_PUBLISHED = (
    Download(
        "https://huggingface.co/google-bert/bert-base-uncased/resolve/main/vocab.txt",
        _FILE,
        "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        231_508,
    ),
)
_PAD, _UNKNOWN, _CLS, _SEP, _MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
_SPECIALS = (_PAD, _UNKNOWN, _CLS, _SEP, _MASK)
_LONGEST_WORD = 100  # characters; a longer word becomes [UNK], as in the original


class Bert(library.LibraryTokenizer):
    """WordPiece on lower-cased text without accents; text is not recovered exactly.

    BOS and EOS are both [CLS]: the official code looks up the EOS id in a way that gives [CLS], and
    its models were trained so. Special tokens written out in a text become their ids, as there.
    """

    name = "bert-base-uncased"

    def __init__(self, tokens: Sequence[str], source: str = "the BERT vocabulary"):
        """Takes the tokens in the order of their ids.

        Raises:
          UserError: a token twice, or one of the special tokens missing.
        """
        self._tokens = list(tokens)
        ids = {token: i for i, token in enumerate(self._tokens)}
        missing = [special for special in _SPECIALS if special not in ids]
        if missing or len(ids) != len(self._tokens):
            what = f"has no token {missing[0]}" if missing else "has a token twice"
            raise errors.UserError(
                f"{source} {what}; give the vocab.txt of a BERT tokenizer (one token per line)"
            )
        self._ids = ids
        self.vocab_size = len(self._tokens)
        self.bos_id = self.eos_id = ids[_CLS]
        self.pad_id = ids[_PAD]

    @classmethod
    def read(cls, folder: str = "", download: bool = False, cache_dir: str = "") -> "Bert":
        """The tokenizer of `folder`/vocab.txt, or of the file where it usually is.

        "" looks in $FLM_JAX_TOKENIZERS/bert-base-uncased, in the Hugging Face cache and in
        `cache_dir`; `download` fetches the published file into `cache_dir` if it is nowhere.

        Raises:
          UserError: the file is missing or damaged, or cannot be fetched.
        """
        files = vocabulary_files.find(
            cls.name, folder, ((_FILE,),), _HUB_NAMES, _PUBLISHED, download, cache_dir
        )
        return cls._parse(files[_FILE], folder or "the BERT vocabulary")

    @classmethod
    def _parse(cls, content: bytes, source: str) -> "Bert":
        try:
            lines = content.decode("utf-8").split("\n")
        except UnicodeDecodeError:
            raise errors.UserError(
                f"{_FILE} in {source} is not UTF-8 text; copy the vocabulary file again"
            ) from None
        if lines[-1] == "":
            lines.pop()
        return cls([line.rstrip("\r") for line in lines], source)

    @functools.cached_property
    def _tokenizer(self):
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

        model = models.WordPiece(
            self._ids, unk_token=_UNKNOWN, max_input_chars_per_word=_LONGEST_WORD
        )
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True
        )
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.add_special_tokens(list(_SPECIALS))
        return tokenizer

    def _files(self) -> dict[str, bytes]:
        return {_FILE: "".join(f"{token}\n" for token in self._tokens).encode()}

    def decode(self, ids: Iterable[int]) -> str:
        """Words joined by spaces, punctuation attached; special tokens but [UNK] are omitted."""
        dropped = {self._ids[special] for special in _SPECIALS if special != _UNKNOWN}
        return vocabulary_files.tidy(self._joined(i for i in ids if int(i) not in dropped))

    def decode_official(self, ids: Iterable[int], tidy: bool = True) -> str:
        """The text that the official generative perplexity scores: special tokens written out.

        `tidy` takes out spaces before punctuation, as the official decoder does.
        """
        text = self._joined(ids)
        return vocabulary_files.tidy(text) if tidy else text

    def _joined(self, ids: Iterable[int]) -> str:
        return " ".join(self._tokens[int(i)] for i in ids).replace(" ##", "").strip()

    def piece(self, token: int) -> str:
        return self._tokens[int(token)]


@dataclasses.dataclass(frozen=True)
class BertRecipe(base.Recipe):
    """BERT's lower-case vocabulary from `folder`, or found, or fetched with `download`."""

    folder: str = ""
    download: bool = False

    def build(
        self,
        documents: base.Documents | None = None,
        cache_dir: str = "",
        fingerprint: str = "",
    ) -> Bert:
        """Reads the file; the text is not looked at.

        Raises:
          UserError: the file is missing or damaged, or cannot be fetched.
        """
        del documents  # nothing to train
        return Bert.read(self.folder, self.download, cache_dir)

    @classmethod
    def from_files(cls, folder: str | os.PathLike, meta: base.Meta) -> Bert:
        """Reads what `save` wrote; raises UserError when it is damaged."""
        return Bert._parse(base.read_file(folder, meta, _FILE), str(folder))
