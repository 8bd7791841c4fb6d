"""A keyed permutation of 0 ... count-1 that needs no table: any part of it, at once, in numpy.

A number is written as a * width + b, with width about sqrt(count), and a generalised Feistel
network (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002) mixes the two digits:
each round adds a hash of one to the other, which can be undone, so the whole is a bijection of
high * width >= count numbers. What falls outside goes through again until it is inside; that is
seldom, because fewer than `width` numbers are outside.
"""

import functools

import numpy as np

_ROUNDS = 6


def shuffled(place_N: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows at places of an endless stream of epochs, each of them a permutation of `count` rows.

    Args:
      place_N: int64, 0 or more; place // count is the epoch.
      seed: of all epochs.

    Returns:
      int64 (N), in 0 ... count-1.
    """
    epoch_N, row_N = np.divmod(place_N, count)
    for epoch in np.unique(epoch_N):
        here = epoch_N == epoch
        row_N[here] = _permuted(row_N[here], count, _keys(seed, int(epoch)))
    return row_N


def _permuted(number_N: np.ndarray, count: int, keys: np.ndarray) -> np.ndarray:
    width = int(np.ceil(np.sqrt(count)))
    high = -(-count // width)
    number_N = number_N.astype(np.uint64)
    outside_N = np.ones(len(number_N), bool)
    while outside_N.any():
        a, b = np.divmod(number_N[outside_N], np.uint64(width))
        for key_a, key_b in keys:
            a = (a + _hash(b, key_a) % np.uint64(high)) % np.uint64(high)
            b = (b + _hash(a, key_b) % np.uint64(width)) % np.uint64(width)
        number_N[outside_N] = a * np.uint64(width) + b
        outside_N = number_N >= count
    return number_N.astype(np.int64)


def _hash(x: np.ndarray, key: np.uint64) -> np.ndarray:
    """uint64 -> uint64: the finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    x = x ^ key
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@functools.lru_cache(maxsize=8)
def _keys(seed: int, epoch: int) -> np.ndarray:
    """uint64 (rounds / 2, 2); numpy promises that SeedSequence never changes."""
    words = np.random.SeedSequence([seed, epoch]).generate_state(_ROUNDS, np.uint64)
    return words.reshape(-1, 2)
