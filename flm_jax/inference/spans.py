"""Gaps of unknown length: one candidate for every number of tokens, and which of them is taken.

A candidate is as good as its open tokens and their given neighbours are probable, two on either
side, each scored with all others given (`scoring`). Without the neighbours a wrong length is hardly
seen, because something always fits into a gap: it is what stands around it that then does not fit.

But words of a long phrase vouch for each other, so that the mean of log p depends on the number of
tokens alone. What is compared is therefore by how much a candidate exceeds what the model reaches
where so many tokens are in fact missing, measured on held-out text: known gaps, filled and scored
in the same way. The same gaps, filled at every length, tell how often the true length would have
been taken; each is judged by what the others say.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flm_jax.data import fixed_batch, load_data
from flm_jax.errors import UserError
from flm_jax.inference import choose_sampler, scoring
from flm_jax.inference import given as given_lib
from flm_jax.tokenizers import Tokenizer

if TYPE_CHECKING:
    from flm_jax.inference.model import FlowModel, Samples

FREE = "free"
LONGEST = 8
GAPS = 64
_GAP = "[MASK]"
_NEIGHBOURS = 2  # given tokens on either side
_ROWS = 1024  # held-out rows at most
Parts = list[int | None]  # tokens of a text; None is an open one


@dataclasses.dataclass(frozen=True)
class Spans:
    """What held-out text says about gaps of 1 to S tokens.

    Attributes:
      expected_S: mean log p, in nats, of the tokens that are written into a gap of the true length
        and of their neighbours.
      hits: share of the held-out gaps whose true length is taken.
      gaps: how many there were.
    """

    expected_S: np.ndarray
    hits: float
    gaps: int

    def __str__(self) -> str:
        longest = len(self.expected_S)
        return (
            f"of {self.gaps} held-out gaps of 1 to {longest} tokens {self.hits:.0%} get their true "
            f"length (by chance {1 / longest:.0%})"
        )


def fill(
    model: "FlowModel",
    span: Spans | str,
    texts: Sequence[str],
    num_samples: int,
    longest: int,
    options: Mapping[str, Any],
) -> "Samples":
    """See `FlowModel.generate`: texts with one gap, written at every length, the best ones."""
    if span != FREE and not isinstance(span, Spans):
        raise UserError(f"span={span!r} is unknown; write span={FREE!r}")
    longest = len(span.expected_S) if isinstance(span, Spans) else _longest(longest)
    begin = model.tokenizer.bos_id is not None
    length = _length(model, options)
    candidates = [
        (i, n, p)
        for i, text in enumerate(texts)
        for n, p in _at_every_length(model.tokenizer, text, longest)
    ]
    fitting = [(i, n, p) for i, n, p in candidates if n == 1 or len(p) + begin <= length]
    parts, of = [part for *_, part in fitting], [texts[i] for i, *_ in fitting]
    samples, values_CM, evaluations = _written(model, parts, of, num_samples, options)
    if not isinstance(span, Spans):
        span = calibrated(model, None, longest, GAPS, options)
    text_C, count_C = np.asarray([(i, n) for i, n, _ in fitting]).T
    values_CM = values_CM - span.expected_S[count_C - 1, None]
    chosen = []
    for i in range(len(texts)):
        mine = np.flatnonzero(text_C == i)
        best_M = mine[values_CM[mine].argmax(0)]
        chosen += (best_M * num_samples + np.arange(num_samples)).tolist()
    return dataclasses.replace(
        samples,
        texts=[samples.texts[row] for row in chosen],
        tokens=samples.tokens[chosen],
        evaluations=evaluations * len(parts) / len(texts),
        prompts=tuple(samples.prompts[row] for row in chosen),
        lengths=span,
    )


def calibrated(
    model: "FlowModel",
    rows_NL: np.ndarray | None,
    longest: int,
    gaps: int,
    options: Mapping[str, Any],
) -> Spans:
    """See `FlowModel.calibrate_spans`."""
    longest, gaps = _longest(longest), choose_sampler.whole("gaps", gaps)
    if gaps < 2 * longest:
        raise UserError(f"gaps={gaps} must be at least {2 * longest}: two of every length")
    rows_NL = _held_out(model) if rows_NL is None else rows_NL
    room = _length(model, options) - (model.tokenizer.bos_id is not None)
    texts = [_first_text(model.tokenizer, row)[: max(0, room - longest + 1)] for row in rows_NL]
    texts = [tokens for tokens in texts if len(tokens) >= longest + 2]
    if not texts:
        raise UserError(
            f"no held-out text of this model has room for gaps of {longest} tokens with a token on "
            "either side; lower max_span, or give other rows"
        )
    generator = np.random.default_rng(0)
    count_G = 1 + np.arange(gaps) % longest
    parts: list[Parts] = []
    for g, n in enumerate(count_G):
        tokens = texts[g % len(texts)]
        at = generator.integers(1, len(tokens) - n)
        open_parts = ([None] * m for m in range(1, longest + 1))
        parts += [[*tokens[:at], *hole, *tokens[at + n :]] for hole in open_parts]
    _, values_C1, _ = _written(model, parts, ["a held-out text"] * len(parts), 1, options)
    values_GS = values_C1.reshape(gaps, longest)
    return Spans(expected(values_GS, count_G), hits(values_GS, count_G), gaps)


def expected(values_GS: np.ndarray, count_G: np.ndarray) -> np.ndarray:
    """The mean value of every length where it is the true one, (S,)."""
    true_GS = count_G[:, None] == 1 + np.arange(values_GS.shape[1])
    return (values_GS * true_GS).sum(0) / true_GS.sum(0)


def hits(values_GS: np.ndarray, count_G: np.ndarray) -> float:
    """The share of gaps whose true length exceeds most what the other gaps let expect."""
    others = (np.arange(len(count_G)) != g for g in range(len(count_G)))
    above_GS = [
        values_S - expected(values_GS[other], count_G[other])
        for values_S, other in zip(values_GS, others, strict=True)
    ]
    return float((np.argmax(above_GS, axis=1) + 1 == count_G).mean())


def _written(
    model: "FlowModel",
    parts: Sequence[Parts],
    texts: Sequence[str],
    num_samples: int,
    options: Mapping[str, Any],
) -> tuple["Samples", np.ndarray, float]:
    """Gaps filled; mean log p in and around them (C, M); evaluations per sample, of both."""
    asked = given_lib.row_of_each(
        model.tokenizer, _length(model, options), parts, texts, open_end=False
    )
    samples = model.generate(num_samples, given=asked, **options)
    asked = asked.repeated(num_samples)
    known_NL = np.arange(samples.tokens.shape[1]) < asked.end_N[:, None]
    scored_NL = known_NL & ~asked.mask_NL
    for _ in range(_NEIGHBOURS):
        scored_NL[:, 1:] |= scored_NL[:, :-1]
        scored_NL[:, :-1] |= scored_NL[:, 1:]
    scored_NL &= known_NL
    if model.tokenizer.bos_id is not None:
        scored_NL[:, 0] = False
    scores = scoring.of_places(model, samples.tokens, known_NL, scored_NL)
    values_CM = -scores.nats.reshape(len(parts), num_samples)
    return samples, values_CM, samples.evaluations + scores.evaluations


def _at_every_length(tokenizer: Tokenizer, text: str, longest: int) -> list[tuple[int, Parts]]:
    """The tokens of a text with a gap of every length, None for open ones."""
    if text.count(_GAP) != 1:
        raise UserError(
            f"the text {given_lib.short(text)} has {text.count(_GAP)} gaps of unknown length, but "
            f"with span={FREE!r} it must be one; write {_GAP} once, and [MASK:2] for two tokens"
        )
    return [
        (n, given_lib.with_holes(tokenizer, text.replace(_GAP, f"[MASK:{n}]")))
        for n in range(1, longest + 1)
    ]


def _first_text(tokenizer: Tokenizer, row_L: np.ndarray) -> list[int]:
    """The tokens of the first document of a row, without marks."""
    tokens = row_L.tolist()
    tokens = tokens[tokens[:1] == [tokenizer.bos_id] :]
    end = next((i for i, token in enumerate(tokens) if token in tokenizer.specials), len(tokens))
    return tokens[:end]


def _held_out(model: "FlowModel") -> np.ndarray:
    """Held-out rows of the text that the model was trained on, int32 (N, L)."""
    section = model.config.data
    if not section.name:
        raise UserError(
            "the checkpoint does not name its training text, on which the lengths of gaps are "
            "measured; give rows of text to calibrate_spans, or a length as in [MASK:3]"
        )
    rows = load_data(section, {}, tokenizer=model.tokenizer).rows["valid"]
    return fixed_batch(rows, min(_ROWS, len(rows)), 0)["tokens"]


def _longest(value: int) -> int:
    longest = choose_sampler.whole("max_span", value)
    if longest < 2:
        raise UserError(f"max_span={longest} must be at least 2: gaps of one token or two")
    return longest


def _length(model: "FlowModel", options: Mapping[str, Any]) -> int:
    return choose_sampler.whole("length", options.get("length") or model.config.data.length)
