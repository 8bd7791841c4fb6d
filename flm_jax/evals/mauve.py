"""MAUVE: how far two sets of texts are apart, in features of a language model.

Pillutla et al., 2021. Features of both sets are cut down to the directions that hold nine tenths of
their variance and put into common clusters, one for every ten texts of a set. With P and Q the
shares of the clusters in either set and R_w = w P + (1 - w) Q, the points

    (exp(-5 KL(Q | R_w)), exp(-5 KL(P | R_w)))        0 < w < 1

are a curve from (0, 1) to (1, 0), and MAUVE is the area below it: 1 where P = Q, and 1/252 where no
cluster has both. Few texts have few clusters and so a value that is too high or too low; compare
with that of two halves of real text of the same size.
"""

import warnings

import numpy as np

SCALE = 5.0  # c of the paper
_VARIANCE = 0.9
_PER_CLUSTER = 10  # texts of one set
_TRIES, _ROUNDS = 5, 20  # of k-means, which has settled by then
_POINTS = 100


def mauve(first_ND: np.ndarray, second_MD: np.ndarray, seed: int = 0) -> float:
    """The area for two sets of features; of the larger set the first ones count.

    Raises ValueError for sets of less than two texts: they have no clusters.
    """
    count = min(len(first_ND), len(second_MD))
    if count < 2:
        raise ValueError(f"MAUVE compares sets of at least 2 texts, not of {count}")
    together = np.concatenate([first_ND[:count], second_MD[:count]]).astype(np.float64)
    clusters = max(2, round(count / _PER_CLUSTER))
    label = _labels(_reduced(_unit(together)), clusters, seed)
    shares = [np.bincount(part, minlength=clusters) / count for part in np.split(label, 2)]
    return area(*shares)


def area(p_K: np.ndarray, q_K: np.ndarray) -> float:
    """The area under the curve of two histograms whose entries sum to one."""
    # Close together at the ends, where the curve of very different histograms turns.
    weight = 0.5 - 0.5 * np.cos(np.pi * np.arange(1, _POINTS) / _POINTS)
    mixed = weight[:, None] * p_K + (1 - weight[:, None]) * q_K
    y = np.exp(-SCALE * np.array([_kl(p_K, r_K) for r_K in mixed]))
    x = np.exp(-SCALE * np.array([_kl(q_K, r_K) for r_K in mixed]))
    x, y = np.concatenate([[1.0], x, [0.0]]), np.concatenate([[0.0], y, [1.0]])
    order = np.lexsort((-y, x))
    return float(np.trapezoid(y[order], x[order]))


def _kl(p_K: np.ndarray, r_K: np.ndarray) -> float:
    there = p_K > 0
    return float(np.sum(p_K[there] * np.log(p_K[there] / r_K[there])))


def _unit(features_ND: np.ndarray) -> np.ndarray:
    return features_ND / np.maximum(np.linalg.norm(features_ND, axis=1, keepdims=True), 1e-12)


def _reduced(features_ND: np.ndarray) -> np.ndarray:
    """The coordinates along the fewest principal directions with enough of the variance."""
    centred = features_ND - features_ND.mean(axis=0)
    coordinates, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    if sizes[0] < 1e-6:  # of vectors of length one: all alike
        return np.zeros((len(features_ND), 1))
    held = np.cumsum(sizes**2) / np.sum(sizes**2)
    kept = 1 + int(np.searchsorted(held, _VARIANCE))
    return _unit(coordinates[:, :kept] * sizes[:kept])


def _labels(features_ND: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """The cluster of each row: the best of several runs of k-means."""
    from scipy.cluster import vq

    generator, found = np.random.default_rng(seed), []
    clusters = min(clusters, len(np.unique(features_ND, axis=0)))
    for _ in range(_TRIES):
        start = _far_apart(features_ND, clusters, generator)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a cluster that has lost all its rows
            centres, label = vq.kmeans2(features_ND, start, iter=_ROUNDS, minit="matrix")
        found.append((float(np.sum((features_ND - centres[label]) ** 2)), label))
    return min(found, key=lambda one: one[0])[1]


def _far_apart(features_ND: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Rows to begin with, each drawn in proportion to its squared distance from those before."""
    chosen = [int(generator.integers(len(features_ND)))]
    nearest_N = np.full(len(features_ND), np.inf)
    while len(chosen) < count:
        apart_N = np.sum((features_ND - features_ND[chosen[-1]]) ** 2, axis=1)
        nearest_N = np.minimum(nearest_N, apart_N)
        chosen.append(int(generator.choice(len(features_ND), p=nearest_N / nearest_N.sum())))
    return features_ND[chosen]
