"""Addition with carry: "7+5=12". Every digit of the sum depends on digits far to its left."""

import dataclasses
import re
from collections.abc import Iterator

import numpy as np

from flm_jax import errors
from flm_jax.data.synthetic.language import Uniform

_MOST_DIGITS = 18  # numbers are 64-bit integers


@dataclasses.dataclass(frozen=True)
class Addition(Uniform):
    """Two operands, independent and uniform, and their sum; all zero-padded to a fixed width.

    A document has 3·digits + 3 characters: 1 digit "7+5=12", 2 digits "07+95=102". Digits drawn
    independently, each from its own marginal, are right with probability
    (c² + (1-c)²)·10^-digits, where c = (1 - 10^-digits)/2 is the share of sums with a leading 1:
    5.05 % for one digit.

    Attributes:
      digits: of each operand; the sum has one more.
    """

    digits: int = 1

    name = "addition"
    tokenizer = "characters"
    given_until = "="

    def __post_init__(self):
        if not 1 <= self.digits <= _MOST_DIGITS:
            raise errors.UserError(
                f"language 'addition' with digits={self.digits} is impossible; use 1 to "
                f"{_MOST_DIGITS}"
            )

    @property
    def longest(self) -> int:
        return 3 * self.digits + 3

    @property
    def size(self) -> int:
        return 100**self.digits

    def sample(self, generator: np.random.Generator, count: int) -> list[str]:
        pairs = generator.integers(10**self.digits, size=(count, 2))
        return [self._text(int(a), int(b)) for a, b in pairs]

    def contains(self, text: str) -> bool:
        d = self.digits
        found = re.fullmatch(f"([0-9]{{{d}}})\\+([0-9]{{{d}}})=([0-9]{{{d + 1}}})", text)
        if not found:
            return False
        a, b, total = map(int, found.groups())
        return a + b == total

    def texts(self) -> Iterator[str]:
        limit = 10**self.digits
        return (self._text(a, b) for a in range(limit) for b in range(limit))

    def _text(self, a: int, b: int) -> str:
        return f"{a:0{self.digits}}+{b:0{self.digits}}={a + b:0{self.digits + 1}}"
