"""Writing that must lose, whatever looks good in it: rows to be measured beside those of models.

Each has something as good as real text has it, or better, and no network. They enter a comparison
as rows of the kind "yardstick". One in which all metrics of such a row are within the range of real
text (`evals.ranges`), or which calls it best, is not to be believed.

Two more need a trained network, and are settings of its sampler (`OF_NETWORKS`).
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from flm_jax.evals import baselines

Rows = Callable[["Text", int, int], np.ndarray]
# Of a kind of model (a row of LOSSES): the sampler and its settings, named as in a config.
OF_NETWORKS: dict[str, tuple[str, str, dict[str, float | str]]] = {
    "greedy text": ("autoregressive", "autoregressive", {"sampler_options.top_p": 1e-6}),
    "the most confident tokens first": (
        "masked_diffusion",
        "ancestral_masked",
        {"sampler_options.order": "confidence", "denoiser_temperature": 0.4},
    ),
}


@dataclasses.dataclass(frozen=True)
class Text:
    """What nonsense is made of.

    Attributes:
      train_rows: int (R, L), that models are trained on.
      real_rows: int (R, L), others.
    """

    train_rows: np.ndarray
    real_rows: np.ndarray


def tiled(text: Text, count: int, seed: int) -> np.ndarray:
    """One real row again and again: likely, and the entropy of a row is real."""
    return _some(text.real_rows, 1, seed).repeat(count, axis=0)


def shuffled(text: Text, count: int, seed: int) -> np.ndarray:
    """Real rows with their tokens in another order: every entropy within a row is real.

    First tokens stay, and last ones where all rows end alike.
    """
    rows = np.array(_some(text.real_rows, count, seed))
    end = rows.shape[1] - int(np.ptp(text.real_rows[:, -1]) == 0)
    rows[:, 1:end] = np.random.default_rng(seed).permuted(rows[:, 1:end], axis=1)
    return rows


def ngrams(text: Text, count: int, seed: int) -> np.ndarray:
    """Two tokens decide the next, as in some training row: likely, and as diverse as real text."""
    return baselines.markov(text.train_rows, count, text.real_rows.shape[1], seed)


def copies(text: Text, count: int, seed: int) -> np.ndarray:
    """Training rows: real text in every respect but that it is not new."""
    return _some(text.train_rows, count, seed)


def greedy(text: Text, count: int, seed: int) -> np.ndarray:
    """The likeliest token after the two before it, again and again: one text."""
    del seed
    return baselines.greedy(
        text.train_rows, text.train_rows[:1, :1].repeat(count, 0), _length(text)
    )


def greedy_ends(text: Text, count: int, seed: int) -> np.ndarray:
    """Beginnings of real rows, a quarter of each, that are ended greedily: samples differ."""
    starts = _some(text.real_rows, count, seed)[:, : max(1, _length(text) // 4)]
    return baselines.greedy(text.train_rows, starts, _length(text))


NONSENSE: dict[str, Rows] = {
    "a tiled row": tiled,
    "shuffled rows": shuffled,
    "an n-gram sampler": ngrams,
    "copies of training rows": copies,
    "greedy n-grams": greedy,
    "greedy ends": greedy_ends,
}


def named_rows(text: Text, count: int, seed: int) -> Iterator[tuple[str, str, np.ndarray]]:
    """(name, "yardstick", rows int (count, L)) of each, as `base.table` takes them."""
    for name, rows in NONSENSE.items():
        yield name, "yardstick", rows(text, count, seed)


def _length(text: Text) -> int:
    return text.real_rows.shape[1]


def _some(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """So many of the rows, drawn; none twice before all were taken."""
    order = np.random.default_rng(seed).permutation(len(rows))
    return np.asarray(rows)[np.sort(np.resize(order, count))]
