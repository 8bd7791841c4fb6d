"""Samplers that must lose, run for real on a truth whose exact networks are known.

Each has something that looks as good as real text or better; the pair (likelihood, diversity
between samples), or the share that is copied, says what is wrong with it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from known_chain import LETTERS, Chain

from flm_jax import config as config_lib
from flm_jax.evals import baselines, nonsense, ranges
from flm_jax.evals.copying import Copying
from flm_jax.evals.diversity import Diversity, distinct
from flm_jax.evals.judged import Judged
from flm_jax.evals.sample_entropy import SampleEntropy
from flm_jax.evals.verdict import Point, best, is_matched, sentence
from flm_jax.flow.randomness import sequence_keys
from flm_jax.flow.space import OneHot
from flm_jax.samplers import SAMPLERS
from flm_jax.samplers.ancestral import AncestralMasked
from flm_jax.samplers.autoregressive import LeftToRight
from flm_jax.sampling import SamplingKnobs

GROUP, N, LENGTH = 48, 192, 24  # distinct-4 is a mean over groups
CLOCK = tiny.clock()
FRESH = 1 << 20  # first index of real text that is not the training text


def point(chain: Chain, rows: np.ndarray) -> Point:
    diversity = np.mean([distinct(rows[i : i + GROUP], 4) for i in range(0, N, GROUP)])
    return Point("sampler", float(chain.score(rows).mean()), float(diversity))


@functools.cache
def real(chain: Chain, group: int = 0) -> np.ndarray:
    return chain.sample(FRESH + N * group + np.arange(N), LENGTH, 0)


def write(sampler, net, steps: int = LENGTH - 1) -> np.ndarray:
    keys = sequence_keys(jax.random.key(0), jnp.arange(N))
    at = tiny.at({"student": net}, OneHot, CLOCK)
    options = {"steps": steps, "length": LENGTH, "bos_id": LETTERS.bos_id}
    return np.asarray(jax.jit(lambda k: tiny.write(sampler, at, k, **options)[0])(keys))


def entropy(rows: np.ndarray) -> float:
    return dict(SampleEntropy()(rows))["sample_entropy"]


@functools.cache
def limits(chain: Chain) -> dict[str, ranges.Range]:
    """Of the pair on real text."""
    rows = np.concatenate([real(chain, group) for group in range(3, 9)])
    return ranges.of([Judged(chain, LETTERS), Diversity(LETTERS, bleu=False)], rows, N, splits=20)


def named(chain: Chain, rows: np.ndarray) -> set[str]:
    """The metrics of the pair that real text does not have."""
    values = dict(Judged(chain, LETTERS)(rows)) | dict(Diversity(LETTERS, bleu=False)(rows))
    return set(ranges.sides(values, limits(chain)))


def check_loses(chain: Chain, rows: np.ndarray, words: str) -> Point:
    """The sentence has the words, and fresh truth is called better; returns the point."""
    truth, fresh, found = (point(chain, x) for x in (real(chain), real(chain, 1), rows))
    assert is_matched(fresh, truth) and "as diverse as real text" in sentence(fresh, truth)
    assert words in sentence(found, truth)
    assert "distinct_4" in named(chain, rows) and len(named(chain, real(chain, 1))) <= 1
    assert best({"sampler": [found], "truth": [fresh]}, truth) == ("truth", fresh.nats)
    return found


def test_greedy_text_from_left_to_right_is_likely_and_always_the_same():
    chain = Chain()
    rows = write(LeftToRight(top_p=1e-6), chain.causal_net())
    assert len(np.unique(rows, axis=0)) == 1
    found = check_loses(chain, rows, "likelihood bought with diversity")
    assert found.nats < point(chain, real(chain)).nats - 0.3
    drawn = point(chain, write(LeftToRight(), chain.causal_net()))
    assert is_matched(drawn, point(chain, real(chain)))  # with draws nothing is wrong with it


def test_text_by_confidence_at_a_low_temperature_loses_whatever_its_entropy():
    """The network is exact; the order and the temperature alone make its samples alike."""
    chain = Chain()
    sampler = AncestralMasked(order="confidence", choice_temperature=0.5)
    rows = write(sampler, chain.masked_net(temperature=0.4), LENGTH)
    found = check_loses(chain, rows, "likelihood bought with diversity")
    assert found.nats < point(chain, real(chain)).nats - 0.3
    assert entropy(rows) > entropy(real(chain)) - 0.5
    warm = point(chain, write(sampler, chain.masked_net(), LENGTH))
    assert is_matched(warm, point(chain, real(chain)))


def test_nonsense_of_networks_is_settings_that_samplers_have():
    for loss, sampler, settings in nonsense.OF_NETWORKS.values():
        prefix = "sampler_options."
        options = {k.removeprefix(prefix): v for k, v in settings.items() if k.startswith(prefix)}
        knobs = {k: v for k, v in settings.items() if not k.startswith(prefix)}
        rule = config_lib.build_sampler(SAMPLERS, sampler, options, SamplingKnobs(**knobs))
        assert rule.needs.causal == (loss == "autoregressive")
        assert rule.needs.mask_token == (loss == "masked_diffusion")
        assert not rule.without_effect(SamplingKnobs(**knobs))


def test_many_tokens_at_once_by_confidence_are_unlikely():
    chain = Chain()
    found = point(chain, write(AncestralMasked(order="confidence"), chain.masked_net(), 2))
    truth = point(chain, real(chain))
    assert found.nats > truth.nats + 0.3
    assert best({"a": [found], "b": [truth]}, truth) == ("b", truth.nats)


@pytest.mark.parametrize("order", [0, 1])
def test_a_sampler_of_words_or_pairs_of_words_is_too_diverse(order):
    """The truth needs two words of context: pairs that were all seen, put together as they come."""
    chain = Chain(order=2)
    rows = baselines.markov(chain.rows(2000, LENGTH), N, LENGTH, 0, order=order)
    found = check_loses(chain, rows, "more diverse than real text, which costs likelihood")
    assert found.nats > point(chain, real(chain)).nats + 0.3


def test_a_tiled_row_and_shuffled_words_lose():
    chain = Chain()
    rows = real(chain, 2)
    check_loses(chain, rows[:1].repeat(N, axis=0), "its samples are alike")
    shuffled = np.random.default_rng(0).permuted(rows[:, 1:], axis=1)
    check_loses(chain, np.concatenate([rows[:, :1], shuffled], axis=1), "more diverse than real")


def test_copied_training_text_has_a_perfect_pair_and_is_found_by_the_copies():
    chain = Chain()
    train = chain.rows(2000, LENGTH)
    copied, truth = train[100 : 100 + N], point(chain, real(chain))
    found = point(chain, copied)
    assert is_matched(found, truth) and found.nats == pytest.approx(truth.nats, abs=0.1)
    evaluate = Copying(LETTERS, train)
    shares = [dict(evaluate(rows))["copied"] for rows in (copied, real(chain))]
    assert shares[0] == 1.0 and shares[1] < 0.05
