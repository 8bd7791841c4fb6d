"""Balanced brackets of one length, uniform over all of them: counting, and with kinds a stack.

There are Catalan(length/2) ways to balance and kinds^(length/2) ways to choose the kind of each
pair. They are drawn exactly, without rejection: with r characters to go and h brackets open, the
share of completions that go on with an opening bracket is (h+2)(r-h) / (2r(h+1)), a ratio of two
ballot numbers, so one uniform integer below 2r(h+1) decides.

Laws that samples are compared in, with n = length/2 pairs and C the Catalan numbers: the depth (how
many brackets are open at most), by counting paths below a bound; pairs that hold nothing, by the
Narayana numbers C(n, k)·C(n, k-1)/n; pairs up to where the first bracket closes, with k of them
C_(k-1)·C_(n-k) ways; and the kinds of the opening brackets, all equally frequent.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np

from flm_jax import errors
from flm_jax.data.synthetic.language import Law, Uniform

_OPENING, _CLOSING = "([{<", ")]}>"


@dataclasses.dataclass(frozen=True)
class Brackets(Uniform):
    """All balanced strings of one length, equally likely.

    Attributes:
      length: characters of every document; even.
      kinds: how many of (), [], {} and <> are used.
    """

    length: int = 12
    kinds: int = 1

    name = "brackets"
    tokenizer = "characters"

    def __post_init__(self):
        if self.length < 2 or self.length % 2:
            raise errors.UserError(
                f"language 'brackets' with length={self.length} is impossible, because brackets "
                f"come in pairs; use an even length, for example {max(2, self.length + 1)}"
            )
        if not 1 <= self.kinds <= len(_OPENING):
            raise errors.UserError(
                f"language 'brackets' with kinds={self.kinds} is impossible; use 1 to "
                f"{len(_OPENING)}"
            )

    @property
    def longest(self) -> int:
        return self.length

    @property
    def size(self) -> int:
        pairs = self.length // 2
        return _catalan(pairs) * self.kinds**pairs

    def sample(self, generator: np.random.Generator, count: int) -> list[str]:
        kinds_NP = generator.integers(self.kinds, size=(count, self.length // 2))
        stack_NH = np.zeros((count, self.length // 2 + 1), np.int64)
        characters_NL = np.empty((count, self.length), "<U1")
        height_N, opened_N, row_N = np.zeros(count, int), np.zeros(count, int), np.arange(count)
        for position in range(self.length):
            left = self.length - position
            open_N = generator.integers(2 * left * (height_N + 1)) < (height_N + 2) * (
                left - height_N
            )
            # An opened bracket takes the next kind and lies on top; a closed one is taken off.
            new_N = kinds_NP[row_N, np.minimum(opened_N, kinds_NP.shape[1] - 1)]
            top_N = stack_NH[row_N, height_N]
            characters_NL[:, position] = np.where(
                open_N, np.array(list(_OPENING))[new_N], np.array(list(_CLOSING))[top_N]
            )
            height_N += np.where(open_N, 1, -1)
            stack_NH[row_N[open_N], height_N[open_N]] = new_N[open_N]
            opened_N += open_N
        return ["".join(row) for row in characters_NL]

    def contains(self, text: str) -> bool:
        expected: list[str] = []
        for character in text:
            kind = _OPENING.find(character)
            if 0 <= kind < self.kinds:
                expected.append(_CLOSING[kind])
            elif not expected or expected.pop() != character:
                return False
        return len(text) == self.length and not expected

    def texts(self) -> Iterator[str]:
        return self._balanced(self.length // 2)

    @functools.cached_property
    def laws(self) -> Mapping[str, Law]:
        n = self.length // 2
        total = _catalan(n)
        below = [_no_deeper(depth, n) for depth in range(n + 1)]
        pairs = range(1, n + 1)
        return {
            "depth": {depth: (below[depth] - below[depth - 1]) / total for depth in pairs},
            "empty pairs": {k: math.comb(n, k) * math.comb(n, k - 1) / (n * total) for k in pairs},
            "pairs in the first": {k: _catalan(k - 1) * _catalan(n - k) / total for k in pairs},
            "kind": dict.fromkeys(_OPENING[: self.kinds], 1 / self.kinds),
        }

    def features(self, text: str) -> Iterator[tuple[str, str | int]]:
        steps = [1 if character in _OPENING else -1 for character in text]
        heights = list(itertools.accumulate(steps))
        yield "depth", max(heights)
        yield "empty pairs", steps.count(1) - sum(a == b == 1 for a, b in itertools.pairwise(steps))
        yield "pairs in the first", (heights.index(0) + 1) // 2
        for character in text:
            if character in _OPENING:
                yield "kind", character

    def _balanced(self, pairs: int) -> Iterator[str]:
        """First the pair that the first bracket opens, then what it holds, then what follows it."""
        if pairs == 0:
            yield ""
            return
        for held in range(pairs):
            for kind in range(self.kinds):
                for inside in self._balanced(held):
                    for after in self._balanced(pairs - 1 - held):
                        yield f"{_OPENING[kind]}{inside}{_CLOSING[kind]}{after}"


def _catalan(pairs: int) -> int:
    """How many ways there are to balance so many pairs of one kind."""
    return math.comb(2 * pairs, pairs) // (pairs + 1)


def _no_deeper(depth: int, pairs: int) -> int:
    """How many of them never have more than `depth` brackets open."""
    ways = [1] + [0] * depth  # by brackets that are open
    for _ in range(2 * pairs):
        ways = [a + b for a, b in zip([0, *ways[:-1]], [*ways[1:], 0], strict=True)]
    return ways[0]


@dataclasses.dataclass(frozen=True)
class Brackets32(Brackets):
    """32 brackets of three kinds: so many texts that none need occur twice.

    Attributes:
      length: characters of every document; even.
      kinds: how many of (), [], {} and <> are used.
    """

    length: int = 32
    kinds: int = 3

    name = "brackets32"
