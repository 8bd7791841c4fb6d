"""GPT-2's byte-level BPE from local vocabulary files, with the [PAD] of the official OWT models."""

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flm_jax import errors
from flm_jax.host.download import Download
from flm_jax.tokenizers import base, library, vocabulary_files

END_OF_TEXT = "<|endoftext|>"
PAD = "[PAD]"
_VOCAB, _MERGES, _COMBINED = "vocab.json", "merges.txt", "tokenizer.json"
_FILE_SETS = ((_VOCAB, _MERGES), ("encoder.json", "vocab.bpe"), (_COMBINED,))
_HUB_NAMES = ("gpt2", "openai-community/gpt2")
_SITE = "https://openaipublic.blob.core.windows.net/gpt-2/models/124M/"
_PUBLISHED = (
    Download(
        _SITE + "encoder.json",
        "encoder.json",
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        1_042_301,
    ),
    Download(
        _SITE + "vocab.bpe",
        "vocab.bpe",
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        456_318,
    ),
)


class Gpt2(library.LibraryTokenizer):
    """Byte-level BPE: any text goes in, and decode(encode(text)) == text.

    BOS and EOS are both <|endoftext|>. As in the official code, "<|endoftext|>" and "[PAD]" written
    out in a text become their ids.
    """

    name = "gpt2"

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        pad: bool = True,
        source: str = "the GPT-2 vocabulary",
    ):
        """Takes token -> id and the merges in order; `pad` adds [PAD] as one more id.

        Raises:
          UserError: ids with gaps, no <|endoftext|>, or a merge whose parts are not in `vocab`.
        """
        vocabulary_files.check_ids(vocab, source)
        if END_OF_TEXT not in vocab:
            raise errors.UserError(
                f"{source} has no token {END_OF_TEXT}; give the files of a GPT-2 tokenizer"
            )
        for pair in merges:
            if not all(part in vocab for part in (*pair, "".join(pair))):
                raise errors.UserError(
                    f"{source} merges {' + '.join(pair)}, which is not in its vocabulary; "
                    "take both files from the same tokenizer"
                )
        self._vocab, self._merges = dict(vocab), list(merges)
        self.bos_id = self.eos_id = vocab[END_OF_TEXT]
        self.pad_id = len(vocab) if pad else None
        self.vocab_size = len(vocab) + bool(pad)

    @classmethod
    def read(
        cls, folder: str = "", pad: bool = True, download: bool = False, cache_dir: str = ""
    ) -> "Gpt2":
        """The tokenizer of the vocabulary files in `folder`, or where such files usually are.

        A folder holds vocab.json and merges.txt, or encoder.json and vocab.bpe, or tokenizer.json;
        "" looks in $FLM_JAX_TOKENIZERS/gpt2, in the Hugging Face cache and in `cache_dir`;
        `download` fetches the published files into `cache_dir` if they are nowhere.

        Raises:
          UserError: the files are missing or damaged, or cannot be fetched.
        """
        files = vocabulary_files.find(
            cls.name, folder, _FILE_SETS, _HUB_NAMES, _PUBLISHED, download, cache_dir
        )
        return cls._parse(files, pad, folder or "the GPT-2 vocabulary")

    @classmethod
    def _parse(cls, files: dict[str, bytes], pad: bool, source: str) -> "Gpt2":
        try:
            texts = [content.decode("utf-8") for content in files.values()]
            if _COMBINED in files:
                model = json.loads(texts[0])["model"]
                vocab, merges = model["vocab"], model["merges"]
            else:
                lines = texts[1].splitlines()
                vocab = json.loads(texts[0])
                merges = [ln for ln in lines if ln and not ln.startswith("#version")]
            pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
            if not isinstance(vocab, dict) or any(len(pair) != 2 for pair in pairs):
                raise ValueError("not a vocabulary with pairs to merge")
        except (ValueError, KeyError, TypeError) as error:
            raise errors.UserError(
                f"{' and '.join(files)} in {source} are not GPT-2 tokenizer files ({error}); "
                "copy them again"
            ) from None
        return cls(vocab, [(left, right) for left, right in pairs], pad, source)

    @functools.cached_property
    def _tokenizer(self):
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        tokenizer = Tokenizer(models.BPE(self._vocab, self._merges))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        specials = [END_OF_TEXT] + [PAD] * (self.pad_id is not None)
        tokenizer.add_special_tokens([AddedToken(s, normalized=False) for s in specials])
        return tokenizer

    def _files(self) -> dict[str, bytes]:
        ordered = sorted(self._vocab, key=self._vocab.__getitem__)
        vocab = json.dumps({token: self._vocab[token] for token in ordered}, ensure_ascii=False)
        merges = "".join(f"{left} {right}\n" for left, right in self._merges)
        return {_VOCAB: vocab.encode(), _MERGES: b"#version: 0.2\n" + merges.encode()}

    def _facts(self) -> dict[str, Any]:
        return {"pad": self.pad_id is not None}

    @functools.cached_property
    def _fingerprint(self) -> str:
        return base.sha256(self.name, str(self.pad_id), *self._files().values())

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def decode_official(self, ids: Iterable[int], tidy: bool = True) -> str:
        """The text that the official generative perplexity scores: special tokens written out.

        `tidy` takes out spaces before punctuation, as the official decoder does.
        """
        text = self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)
        return vocabulary_files.tidy(text) if tidy else text

    def piece(self, token: int) -> str:
        return self._tokenizer.decode([int(token)], skip_special_tokens=False)


@dataclasses.dataclass(frozen=True)
class Gpt2Recipe(base.Recipe):
    """GPT-2's vocabulary from `folder`, or found, or fetched with `download`.

    `pad` gives the 50258 ids of the official models.
    """

    folder: str = ""
    pad: bool = True
    download: bool = False

    def build(
        self,
        documents: base.Documents | None = None,
        cache_dir: str = "",
        fingerprint: str = "",
    ) -> Gpt2:
        """Reads the files; the text is not looked at.

        Raises:
          UserError: the files are missing or damaged, or cannot be fetched.
        """
        del documents  # nothing to train
        return Gpt2.read(self.folder, self.pad, self.download, cache_dir)

    @classmethod
    def from_files(cls, folder: str | os.PathLike, meta: base.Meta) -> Gpt2:
        """Reads what `save` wrote; raises UserError when it is damaged."""
        files = {name: base.read_file(folder, meta, name) for name in (_VOCAB, _MERGES)}
        return Gpt2._parse(files, bool(meta.get("pad")), str(folder))
