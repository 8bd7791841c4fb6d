"""Prompts, texts with holes, texts to correct: which tokens of a row are given, and what is read.

Text stands at the beginning of a row, after BOS where the tokenizer has one, as in training. All
other positions are open.
"""

import dataclasses
import re
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from flm_jax.errors import UserError
from flm_jax.samplers.base import Given
from flm_jax.tokenizers import Tokenizer

_HOLE = re.compile(r"\[MASK(?::(?P<count>[^\]]*))?\]")
_SHOWN = 60  # characters of a text in a sentence


@dataclasses.dataclass(frozen=True)
class Asked:
    """Rows of tokens of which some are given.

    Attributes:
      tokens_NL, mask_NL: int32 and bool; a token counts where the mask is true.
      end_N: where the text that was asked for ends, the row's length for an open end.
      texts: what the user wrote, one for each row; none for rows of tokens.
    """

    tokens_NL: np.ndarray
    mask_NL: np.ndarray
    end_N: np.ndarray
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.tokens_NL)

    def repeated(self, count: int) -> "Asked":
        """Every row so many times, one copy after the other."""
        rows = np.repeat(np.arange(len(self)), count)
        texts = tuple(text for text in self.texts for _ in range(count))
        return Asked(self.tokens_NL[rows], self.mask_NL[rows], self.end_N[rows], texts)

    def part(self, first: int, size: int) -> Given:
        """``size`` rows from ``first`` on; the last one again where there are no more."""
        rows = np.minimum(np.arange(first, first + size), len(self) - 1)
        return Given(jnp.asarray(self.tokens_NL[rows]), jnp.asarray(self.mask_NL[rows]))

    def read(self, tokenizer: Tokenizer, i: int, tokens_L: np.ndarray) -> str:
        """The text of row i as it was written: without BOS, to its end or the end mark."""
        ids, given_L = tokens_L[: self.end_N[i]].tolist(), self.mask_NL[i]
        begin = int(tokenizer.bos_id is not None and ids[:1] == [tokenizer.bos_id])
        ends = (p for p in range(begin, len(ids)) if ids[p] in tokenizer.specials)
        end = next((p for p in ends if not given_L[p]), len(ids))
        return tokenizer.decode(ids[begin:end])


def asked(
    tokenizer: Tokenizer,
    length: int,
    prompt: str | Sequence[str] | None = None,
    infill: str | Sequence[str] | None = None,
    given: Given | Asked | None = None,
) -> Asked | None:
    """What is given of rows of ``length`` tokens, from one of the three; None for none of them.

    Raises UserError for more than one of them, an empty one, text that does not survive the
    tokenizer or the length, and arrays of wrong shapes or values.
    """
    options = {"prompt": prompt, "infill": infill, "given": given}
    named = [name for name, value in options.items() if value is not None]
    if len(named) > 1:
        raise UserError(f"{' and '.join(named)} are set, but only one can be; omit the others")
    if isinstance(given, Asked):
        return given
    if given is not None:
        return _of_arrays(given, length, tokenizer.vocab_size)
    if prompt is not None:
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        return row_of_each(tokenizer, length, [_prompt(tokenizer, text) for text in texts], texts)
    if infill is not None:
        texts = [infill] if isinstance(infill, str) else list(infill)
        rows = [with_holes(tokenizer, text) for text in texts]
        return row_of_each(tokenizer, length, rows, texts, open_end=False)
    return None


def whole(tokenizer: Tokenizer, length: int, texts: str | Sequence[str] | Given) -> Asked:
    """Texts of which every token is given, or rows with a mask as they are.

    Raises UserError for what `asked` does.
    """
    if isinstance(texts, Given):
        return _of_arrays(texts, length, tokenizer.vocab_size)
    texts = [texts] if isinstance(texts, str) else list(texts)
    parts = [tokens_of(tokenizer, text) for text in texts]
    return row_of_each(tokenizer, length, parts, texts, open_end=False)


def row_of_each(
    tokenizer: Tokenizer,
    length: int,
    parts: Sequence[Sequence[int | None]],
    texts: Sequence[str],
    open_end: bool = True,
) -> Asked:
    """Rows that begin with BOS and these tokens; None is an open one, and so is what is behind.

    Raises UserError for no text at all, and for one that does not fit into ``length`` tokens.
    """
    if not parts:
        raise UserError("there is no text to go on from; give at least one")
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    room = length - len(bos) - open_end
    tokens_NL = np.zeros((len(parts), length), np.int32)
    mask_NL = np.zeros(tokens_NL.shape, bool)
    end_N = np.full(len(parts), length)
    for i, (part, text) in enumerate(zip(parts, texts, strict=True)):
        if len(part) > room:
            raise UserError(
                f"the text {short(text)} has {len(part)} tokens, but a text of {length} tokens "
                f"has room for {room}; shorten it, or set a greater length"
            )
        row = [*bos, *part]
        tokens_NL[i, : len(row)] = [0 if token is None else token for token in row]
        mask_NL[i, : len(row)] = [token is not None for token in row]
        if not open_end:
            end_N[i] = len(row)
    return Asked(tokens_NL, mask_NL, end_N, tuple(texts))


def tokens_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text; UserError if they do not stand for it."""
    tokens = tokenizer.encode(text)
    back = tokenizer.decode(tokens)
    if "".join(back.split()) != "".join(text.split()):
        raise UserError(
            f"the text {short(text)} is {short(back)} to the tokenizer {tokenizer.name!r} of "
            "this model; write it with what its training text has"
        )
    return tokens


def _prompt(tokenizer: Tokenizer, text: str) -> list[int | None]:
    if not text:
        raise UserError("the prompt is empty; give some text, or omit it")
    if _HOLE.search(text):
        raise UserError(f"the prompt {short(text)} has an open token in it; give it as infill")
    return [*tokens_of(tokenizer, text)]


def with_holes(tokenizer: Tokenizer, text: str) -> list[int | None]:
    """The tokens of a text with [MASK] (one open token) or [MASK:5] (five) in it; None is open.

    A space before a hole, or between two, belongs to the open token where the tokenizer has tokens
    that begin with their space. Raises UserError for a text without a hole.
    """
    found = list(_HOLE.finditer(text))
    if not found:
        raise UserError(
            f"the text {short(text)} has nothing to fill in; write [MASK] for an open token, "
            "[MASK:5] for five, or give it as a prompt"
        )
    joined = _joins_spaces(tokenizer)
    parts: list[int | None] = []
    at = 0
    for hole in found:
        piece = text[at : hole.start()]
        encode = _behind if at else tokens_of
        parts += encode(tokenizer, piece.rstrip() if joined else piece)
        count = hole["count"]
        if count is not None and not (count.isascii() and count.isdigit() and int(count)):
            raise UserError(f"{hole[0]} is no number of open tokens; write for example [MASK:5]")
        parts += [None] * int(count or 1)
        at = hole.end()
    return parts + _behind(tokenizer, text[at:])


def _behind(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text with something before it, as those of " it." behind an open token.

    SentencePiece has a space before whatever it is given, so the text is given behind a mark.
    """
    tokens = tokens_of(tokenizer, text)
    for mark in (".", "a"):  # the second one for a text that begins with the first
        before, whole = tokenizer.encode(mark), tokenizer.encode(mark + text)
        if whole[: len(before)] == before:
            return whole[len(before) :]
    return tokens


def _joins_spaces(tokenizer: Tokenizer) -> bool:
    """Whether a space is part of the token behind it (BPE), not a token of its own (characters)."""
    pieces = (tokenizer.piece(token) for token in range(tokenizer.vocab_size))
    return any(piece[:1] == " " and piece[1:2].isalnum() for piece in pieces)


def kept(tokenizer: Tokenizer, length: int, text: str, keep: str) -> Asked:
    """A text of which only some tokens are given: ``keep`` is like "0:5" or "0:5,8:".

    The others, as many as there are, are open. Raises UserError for no such places.
    """
    tokens: list[int | None] = [*tokens_of(tokenizer, text)]
    given_L = _places(keep, len(tokens))
    parts = [token if place else None for token, place in zip(tokens, given_L, strict=True)]
    return row_of_each(tokenizer, length, [parts], [text], open_end=False)


def _places(keep: str, count: int) -> np.ndarray:
    """Where the ranges are, bool (count,)."""
    places = np.zeros(count, bool)
    for part in keep.split(","):
        match = re.fullmatch(r"\s*(\d*)\s*:\s*(\d*)\s*|\s*(\d+)\s*", part)
        if match is None:
            raise UserError(
                f"keep={keep!r} is not a list of places; write for example keep='0:5' for the "
                "first five tokens, or keep='0:5,8:'"
            )
        begin, end, one = match.groups()
        first, last = (int(one), int(one) + 1) if one else (int(begin or 0), int(end or count))
        if not 0 <= first < last <= count:
            raise UserError(
                f"{part.strip()!r} in keep={keep!r} names no tokens of a text of {count}; give "
                f"places from 0 to {count}"
            )
        places[first:last] = True
    return places


def _of_arrays(given: Given, length: int, vocab_size: int) -> Asked:
    tokens_NL, mask_NL = np.asarray(given.tokens_BL), np.asarray(given.mask_BL)
    if tokens_NL.ndim != 2 or tokens_NL.shape != mask_NL.shape or tokens_NL.shape[1] != length:
        raise UserError(
            f"given tokens {tokens_NL.shape} and their mask {mask_NL.shape} must both have the "
            f"shape (texts, {length}); fill rows up with anything where the mask is False"
        )
    if mask_NL.dtype != bool or not np.issubdtype(tokens_NL.dtype, np.integer):
        raise UserError(
            f"given tokens ({tokens_NL.dtype}) must be integers and their mask ({mask_NL.dtype}) "
            "bool, True where a token is given"
        )
    counted = tokens_NL[mask_NL]
    wrong = counted[(counted < 0) | (counted >= vocab_size)]
    if wrong.size:
        raise UserError(
            f"{wrong[0]} among the given tokens is not a token of this model; give ids from 0 to "
            f"{vocab_size - 1}"
        )
    if not len(tokens_NL):
        raise UserError("there are no given rows; give at least one")
    tokens_NL = np.where(mask_NL, tokens_NL, 0).astype(np.int32)
    return Asked(tokens_NL, mask_NL, np.full(len(tokens_NL), length), ())


def short(text: str) -> str:
    """A text as sentences about it show it."""
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")
