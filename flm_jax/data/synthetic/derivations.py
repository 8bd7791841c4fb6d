"""Exact sums over the derivations of a probabilistic grammar.

The rules of a derivation multiply to its probability. Where every sentence has one derivation, sums
over sentences are sums over derivations, which dynamic programming does exactly:

  mass    m_A(n)    = sum of p over the derivations of n words from A
  uses    u_A(n, r) = sum of p·(how often rule r is applied) over the same; for two parts of a
          right-hand side, with p = p1·p2, u = u1*m2 + m1*u2 (convolutions over n), and applying
          rule r of probability q turns (m, u) into (q·m, q·(u + m·e_r))
  counts  c_A(n)    = how many derivations of n words there are

Sentences longer than a limit are cut off and the rest is normalised by Z = sum of m_S(n), so that a
rule is applied sum of u_S(n, r) / Z times on average, and the entropy of a sentence is
log Z - sum over r of log q_r times that.
"""

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Iterator

import numpy as np

# Symbol -> its rules: probability, and the parts (symbols or words) with blanks between.
Rules = dict[str, tuple[tuple[float, str], ...]]


@dataclasses.dataclass(frozen=True)
class Tables:
    """Sums over the derivations of 0 to `longest` words from the start symbol.

    Attributes:
      mass: p, float64 (longest + 1,).
      counts: exact integers, (longest + 1,).
      uses: of every rule in the order of the rules, weighted by p, float64 (longest + 1, R).
    """

    mass: np.ndarray
    counts: list[int]
    uses: np.ndarray


class Derivations:
    """The rules of one grammar, and what is computed from them.

    Attributes:
      rules: whose probabilities sum to 1 for every symbol; no sentence has two derivations.
      start: the symbol of a sentence.
      flat: (symbol, probability, parts) of all rules in order.
      words: everything that no rule expands, sorted.
    """

    def __init__(self, rules: Rules, start: str):
        self.rules, self.start = rules, start
        self.flat = [
            (symbol, q, tuple(right.split()))
            for symbol, choices in rules.items()
            for q, right in choices
        ]
        self.words = sorted({part for *_, parts in self.flat for part in parts} - rules.keys())
        self._numbered: dict[str, list[tuple[int, float, tuple[str, ...]]]] = {}
        for number, (symbol, q, parts) in enumerate(self.flat):
            self._numbered.setdefault(symbol, []).append((number, q, parts))
        # Of symbols that only stand for one word: word -> probability.
        self._lexicon = {
            symbol: {parts[0]: q for _, q, parts in choices}
            for symbol, choices in self._numbered.items()
            if all(len(parts) == 1 and parts[0] not in rules for *_, parts in choices)
        }
        self._bounds = {
            symbol: list(itertools.accumulate(q for _, q, _ in choices))[:-1]
            for symbol, choices in self._numbered.items()
        }

    def inside(self, words: tuple[str, ...]) -> float:
        """The sum of the probabilities of all derivations of the words, before any cut-off.

        A chart: what a symbol, or the tail of a rule, gives on words i to j is computed once.
        """

        @functools.cache
        def tail(symbols: tuple[str, ...], i: int, j: int) -> float:
            first, rest = symbols[0], symbols[1:]
            if not rest:
                return symbol(first, i, j)
            if first not in self.rules or first in self._lexicon:  # takes one place
                head = symbol(first, i, i + 1)
                return head * tail(rest, i + 1, j) if head else 0.0
            return sum(
                head * tail(rest, k, j)
                for k in range(i + 1, j - len(rest) + 1)
                if (head := symbol(first, i, k))
            )

        @functools.cache
        def symbol(name: str, i: int, j: int) -> float:
            if name not in self.rules:
                return float(j - i == 1 and words[i] == name)
            if name in self._lexicon:
                return self._lexicon[name].get(words[i], 0.0) if j - i == 1 else 0.0
            return sum(
                q * tail(parts, i, j) for _, q, parts in self._numbered[name] if len(parts) <= j - i
            )

        return symbol(self.start, 0, len(words))

    def draw(self, generator: np.random.Generator, longest: int) -> list[str] | None:
        """The words of a derivation drawn by its rules; None once it must become too long."""
        words: list[str] = []
        pending = [self.start]
        while pending:
            if len(words) + len(pending) > longest:
                return None
            symbol = pending.pop()
            if symbol in self.rules:
                chosen = bisect.bisect_right(self._bounds[symbol], generator.random())
                pending += reversed(self._numbered[symbol][chosen][2])
            else:
                words.append(symbol)
        return words

    def sentences(self, n: int) -> Iterator[tuple[str, ...]]:
        """The words of every derivation of exactly n words."""
        return self._derive((self.start,), n)

    def tables(self, longest: int) -> Tables:
        """The sums for up to `longest` words.

        A symbol on n words needs other symbols on n words only through rules of one part, which are
        not circular, so passes are repeated until nothing changes.
        """
        size, width = longest + 1, len(self.flat)
        none = Tables(np.zeros(size), [0] * size, np.zeros((size, width)))
        found = dict.fromkeys(self.rules, none)
        while True:
            before = {symbol: part.counts for symbol, part in found.items()}
            found = {symbol: self._expand(symbol, found, size) for symbol in self.rules}
            if {symbol: part.counts for symbol, part in found.items()} == before:
                return found[self.start]

    def _expand(self, symbol: str, found: dict[str, Tables], size: int) -> Tables:
        """One pass for one symbol, from the tables of the parts of its rules."""
        mass, uses = np.zeros(size), np.zeros((size, len(self.flat)))
        counts = [0] * size
        for number, q, parts in self._numbered[symbol]:
            shift = sum(part not in self.rules for part in parts)  # words take one place each
            m, c = np.eye(1, size, shift)[0], [int(n == shift) for n in range(size)]
            u = np.zeros_like(uses)
            for part in (found[part] for part in parts if part in self.rules):
                u = _convolution(part.mass) @ u + _convolution(m) @ part.uses
                m = _convolution(part.mass) @ m
                c = [sum(c[k] * part.counts[n - k] for k in range(n + 1)) for n in range(size)]
            u[:, number] += m
            mass, uses = mass + q * m, uses + q * u
            counts = [a + b for a, b in zip(counts, c, strict=True)]
        return Tables(mass, counts, uses)

    def _derive(self, symbols: tuple[str, ...], n: int) -> Iterator[tuple[str, ...]]:
        if not symbols or n < len(symbols):
            if not symbols and n == 0:
                yield ()
            return
        first, rest = symbols[0], symbols[1:]
        if first not in self.rules:
            for words in self._derive(rest, n - 1):
                yield (first, *words)
            return
        for _, _, parts in self._numbered[first]:
            yield from self._derive((*parts, *rest), n)


def _convolution(values: np.ndarray) -> np.ndarray:
    """The matrix M with M @ x = values * x, cut to the length of both."""
    size = len(values)
    lag = np.subtract.outer(np.arange(size), np.arange(size))
    return np.where(lag >= 0, values[np.maximum(lag, 0)], 0.0)
