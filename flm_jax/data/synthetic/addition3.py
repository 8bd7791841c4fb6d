"""Addition of which a tenth of the operand pairs is kept back: does a model add, or does it recall?

Which pairs are kept back must look like chance, be a tenth exactly, and be cheap to say for numbers
of any size, in both directions: is this pair kept back, and draw one that is. A Feistel network
does all that. Rounds (a, b) -> (b, a + f(b) mod 10^digits) with a fixed f are a permutation of the
pairs, whatever f is; kept back are those whose image (a, b) has a leading digit 0 in a.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping

import numpy as np

from flm_jax.data.synthetic.addition import Addition
from flm_jax.data.synthetic.language import Law

_ROUNDS = 4  # from three on the halves look independent


@dataclasses.dataclass(frozen=True)
class Addition3(Addition):
    """Three-digit addition whose training documents lack a tenth of the operand pairs.

    The language is uniform over all pairs; training documents are uniform over nine tenths of them,
    held-out ones (splits valid and test) over the last tenth. Who adds writes the last tenth in a
    tenth of the samples; who recalls training documents never does. The pairs (a, b) and (b, a) are
    kept back independently.

    Attributes:
      digits: of each operand; the sum has one more.
    """

    digits: int = 3

    name = "addition3"
    held_out_share = 0.1

    def is_held_out(self, text: str) -> bool:
        operands = text.partition("=")[0].split("+")
        a_1, b_1 = (np.array([operand], int) for operand in operands)
        return bool(self._forward(a_1, b_1)[0][0] < self._tenth)

    def split(self, generator: np.random.Generator, count: int, held_out: bool) -> list[str]:
        low, high = (0, self._tenth) if held_out else (self._tenth, self._limit)
        image = generator.integers(low, high, count), generator.integers(self._limit, size=count)
        pairs = zip(*self._backward(*image), strict=True)
        return [self._text(int(a), int(b)) for a, b in pairs]

    @functools.cached_property
    def laws(self) -> Mapping[str, Law]:
        """Of the digits of both operands, place by place, and of the number of carries."""
        places = [f"digit {i + 1} of operand {n}" for n in (1, 2) for i in range(self.digits)]
        laws: dict[str, Law] = {place: dict.fromkeys("0123456789", 0.1) for place in places}
        laws["number of carries"] = dict(enumerate(_carries(self.digits)))
        return laws

    def features(self, text: str) -> Iterator[tuple[str, str | int]]:
        d = self.digits
        operands = text[:d], text[d + 1 : 2 * d + 1]
        for n, operand in enumerate(operands, start=1):
            for i, digit in enumerate(operand, start=1):
                yield f"digit {i} of operand {n}", digit
        a, b = map(int, operands)
        yield "number of carries", sum(a % 10**k + b % 10**k >= 10**k for k in range(1, d + 1))

    @property
    def _limit(self) -> int:
        return 10**self.digits

    @property
    def _tenth(self) -> int:
        return 10 ** (self.digits - 1)

    def _forward(self, a_N: np.ndarray, b_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        for number in range(_ROUNDS):
            a_N, b_N = b_N, (a_N + self._scatter(b_N, number)) % self._limit
        return a_N, b_N

    def _backward(self, a_N: np.ndarray, b_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        for number in reversed(range(_ROUNDS)):
            a_N, b_N = (b_N - self._scatter(a_N, number)) % self._limit, a_N
        return a_N, b_N

    def _scatter(self, x_N: np.ndarray, number: int) -> np.ndarray:
        """f of a round: SplitMix64 of the operand, below the limit."""
        with np.errstate(over="ignore"):  # it computes modulo 2^64
            z = x_N.astype(np.uint64) + np.uint64(number + 1) * np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((z ^ (z >> np.uint64(31))) % np.uint64(self._limit)).astype(np.int64)


def _carries(digits: int) -> list[float]:
    """Probabilities of 0 to `digits` carries; one has 0.45, and 0.55 behind another."""
    without, with_one = np.eye(1, digits + 1)[0], np.zeros(digits + 1)
    for _ in range(digits):
        carried = np.roll(0.45 * without + 0.55 * with_one, 1)
        without, with_one = 0.55 * without + 0.45 * with_one, carried
    return (without + with_one).tolist()
