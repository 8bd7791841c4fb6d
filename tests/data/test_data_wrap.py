"""Wrapping: the stream survives exactly, against a slow reading of the definition."""

import numpy as np
import pytest

from flm_jax import errors
from flm_jax.data import wrap

BOS, EOS = 1, 2


def random_documents(seed, count, longest=12):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 99, rng.integers(0, longest)).tolist() for _ in range(count)]


def wrapped(documents, length, every=0):
    blocks = list(wrap.wrap(documents, length, BOS, EOS, every))
    assert all(block.dtype == np.int32 and len(block) for block in blocks)
    return np.concatenate([np.empty((0, length), np.int32), *blocks])


def by_definition(documents, length, every):
    """Token by token: documents in groups, EOS behind each, pieces of L-2, remainder dropped."""
    rows, every = [], every or max(1, len(documents))
    for start in range(0, len(documents), every):
        stream = [t for d in documents[start : start + every] for t in [*d, EOS]]
        while len(stream) >= length - 2:
            rows.append([BOS, *stream[: length - 2], EOS])
            stream = stream[length - 2 :]
    return np.array(rows, np.int32).reshape(-1, length)


@pytest.mark.parametrize("length", [3, 4, 7, 32, 1000])
@pytest.mark.parametrize("every", [0, 1, 5, 1000])
def test_equals_the_definition(length, every, monkeypatch):
    documents = random_documents(length + every, 60)
    for buffer in (1, 50, 1 << 20):  # how the stream is buffered must not show
        monkeypatch.setattr(wrap, "_BUFFER", buffer)
        rows_NL = wrapped(iter(documents), length, every)
        np.testing.assert_array_equal(rows_NL, by_definition(documents, length, every))


def test_hand_written_example():
    rows_NL = wrapped([[5, 6, 7], [], [8, 9]], 5)
    np.testing.assert_array_equal(rows_NL, [[BOS, 5, 6, 7, EOS], [BOS, EOS, EOS, 8, EOS]])


def test_without_inserted_ends_the_documents_run_together():
    def rows(documents, **options):
        return [
            row.tolist() for block in wrap.wrap(documents, 5, BOS, EOS, **options) for row in block
        ]

    documents = random_documents(3, 40)
    ended = [[*document, EOS] for document in documents]
    assert rows(ended, insert_eos=False) == rows(documents)
    assert rows([[5, 6], [], [7, 8]], insert_eos=False) == [[BOS, 5, 6, 7, EOS]]


def test_nothing_and_too_little_give_no_rows():
    assert len(wrapped([], 8)) == len(wrapped([[3, 4]], 8)) == 0


def test_rows_hold_bos_and_eos_at_their_ends_only_once_more_than_the_stream():
    documents = random_documents(0, 300)
    rows_NL = wrapped(documents, 16)
    assert (rows_NL[:, 0] == BOS).all() and (rows_NL[:, -1] == EOS).all()
    assert BOS not in rows_NL[:, 1:]


@pytest.mark.parametrize("bos", [BOS, EOS])  # GPT-2 uses one id for both
def test_split_row_gives_the_documents_back(bos):
    documents = [[5, 6, 7], [8], [9, 10]]
    stream = [t for d in documents for t in [*d, EOS]]
    assert wrap.split_row([bos, *stream, EOS], bos, EOS) == documents
    assert wrap.split_row(np.array([bos, EOS, EOS, 4, EOS]), bos, EOS) == [[4]]


@pytest.mark.parametrize("length", [2, 0, -5])
def test_too_short_rows_are_refused(length):
    with pytest.raises(errors.UserError, match=rf"length is {length}, .* at least 3"):
        wrapped([[3]], length)
