"""Batches: epochs are permutations; order and resume are free of shards, workers and batch size."""

import json

import numpy as np
import pytest

from flm_jax import errors
from flm_jax.data import Batches, Rows, fixed_batch, shards

COUNT, LENGTH = 22, 4


def make_rows(folder, count=COUNT, sha="a" * 64, shard_rows=5):
    array_NL = np.arange(count)[:, None] * np.ones(LENGTH, int) + np.arange(LENGTH) * 1000
    path = folder / f"rows{count}{sha[0]}{shard_rows}"
    writer = shards.Writer(path, shard_rows, LENGTH, np.uint16)
    for start in range(0, count, shard_rows):
        writer.add(array_NL[start : start + shard_rows])
        writer.finish({})
    manifest = {"rows": count, "length": LENGTH, "sha256": sha, "shard_rows": shard_rows}
    return Rows(path, manifest | {"shards": writer.shards()})


@pytest.fixture
def rows(tmp_path):
    return make_rows(tmp_path)


def take(batches, count):
    """Row numbers of the next `count` batches: (count, batch)."""
    return np.stack([next(batches)["tokens"][:, 0] for _ in range(count)])


def joined(rows, shard_count, steps, global_batch=6, state=None, **options):
    """Global batches put together from the shards in their order, as a global array is."""
    shards = [Batches(rows, global_batch, 7, i, shard_count, **options) for i in range(shard_count)]
    for shard in shards if state else ():
        shard.set_state(state)
    numbers = np.concatenate([take(shard, steps) for shard in shards], axis=1)
    states = [shard.get_state() for shard in shards]
    for shard in shards:
        shard.close()
    assert all(other == states[0] for other in states)
    return numbers, states[0]


@pytest.mark.parametrize("shard_rows", [1, 4, 22, 99])
def test_rows_are_found_in_their_shards(tmp_path, shard_rows):
    found = make_rows(tmp_path, shard_rows=shard_rows)
    array_NL = np.arange(COUNT)[:, None] + np.arange(LENGTH) * 1000
    for index in (0, 7, -1, -COUNT, slice(None), slice(3, 9), slice(20, 2, -3), slice(5, 5)):
        np.testing.assert_array_equal(found[index], array_NL[index])
    for index in ([3, 3, -1, 0, 17], [], [[1, 2], [21, -4]]):
        np.testing.assert_array_equal(found[np.array(index, int)], array_NL[np.array(index, int)])
    for index in (COUNT, -COUNT - 1, [0, COUNT], [-COUNT - 1]):
        with pytest.raises(IndexError, match=f"of {COUNT}"):
            found[index]


def test_batches_are_int32_rows(rows):
    batch = next(Batches(rows, 6, 0))
    assert batch.keys() == {"tokens"} and batch["tokens"].dtype == np.int32
    np.testing.assert_array_equal(batch["tokens"], rows[batch["tokens"][:, 0]])


def test_each_epoch_is_another_permutation(rows):
    stream = take(Batches(rows, 6, 0), 11).ravel()  # 66 = 3 epochs of 22
    epochs = stream.reshape(3, COUNT)
    for epoch in epochs:
        assert sorted(epoch) == list(range(COUNT))
    assert (epochs[0] != np.arange(COUNT)).any()
    assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()


def test_seed_decides_the_order(rows):
    first, same, other = (take(Batches(rows, 6, seed), 4) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


@pytest.mark.parametrize("shard_count", [2, 3, 6])
def test_global_batches_do_not_depend_on_the_number_of_shards(rows, shard_count):
    whole, state = joined(rows, 1, 9)
    parts, parts_state = joined(rows, shard_count, 9)
    np.testing.assert_array_equal(parts, whole)
    assert parts_state == state


@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize("shards", [(1, 1), (1, 3), (2, 1), (3, 2)])
def test_resume_is_exact_through_json_and_other_shard_counts(rows, after, shards):
    whole, _ = joined(rows, 1, after + 6)
    first, state = joined(rows, shards[0], after) if after else (None, None)
    state = json.loads(json.dumps(state)) if state else None
    rest, _ = joined(rows, shards[1], 6, state=state)
    np.testing.assert_array_equal(rest, whole[after:])


def test_state_may_be_set_back_and_forth_on_a_used_iterator(rows):
    batches = Batches(rows, 6, 0)
    take(batches, 2)
    state = batches.get_state()
    ahead = take(batches, 5)
    batches.set_state(state)
    np.testing.assert_array_equal(take(batches, 5), ahead)


@pytest.mark.parametrize("shard_count", [1, 2])
def test_another_batch_size_goes_on_in_the_same_stream(rows, shard_count):
    stream = joined(rows, 1, 20)[0].ravel()
    _, state = joined(rows, 1, 3)
    rest, _ = joined(rows, shard_count, 5, global_batch=8, state=state)
    np.testing.assert_array_equal(rest.ravel(), stream[18 : 18 + 40])


def test_fewer_rows_than_the_batch_are_repeated_in_new_orders(tmp_path):
    few = make_rows(tmp_path, 5)
    batches = take(Batches(few, 20, 0), 3)
    for epoch in batches.reshape(-1, 5):
        assert sorted(epoch) == list(range(5))
    np.testing.assert_array_equal(
        joined(few, 4, 3, global_batch=20)[0], take(Batches(few, 20, 7), 3)
    )


def test_workers_do_not_change_the_batches_nor_the_state(rows):
    whole, _ = joined(rows, 1, 7)
    batches = Batches(rows, 6, 7, num_workers=2)
    np.testing.assert_array_equal(take(batches, 3), whole[:3])
    state = batches.get_state()
    batches.close()
    np.testing.assert_array_equal(joined(rows, 2, 4, state=state)[0], whole[3:])


def test_a_batch_that_cannot_be_divided_is_refused(rows):
    with pytest.raises(errors.UserError, match="batch size 7 .* multiple of the 3 .*; try 6"):
        Batches(rows, 7, 0, 0, 3)
    with pytest.raises(errors.UserError, match="batch size 0 .* try 1"):
        Batches(rows, 0, 0)
    with pytest.raises(ValueError, match="shard_index 2 is not below shard_count 2"):
        Batches(rows, 6, 0, 2, 2)


@pytest.mark.parametrize(
    "error, kind",
    [(RuntimeError("worker died"), errors.TryAgain), (OSError("no room"), errors.UserError)],
)
def test_workers_that_fail_are_one_sentence(rows, monkeypatch, error, kind):
    def broken():
        raise error
        yield

    batches = Batches(rows, 6, 0)
    monkeypatch.setattr(batches, "_iterator", broken())
    monkeypatch.setattr(batches, "_num_workers", 2)
    with pytest.raises(
        errors.UserError, match=f"the data.num_workers=2 processes .*{error}"
    ) as told:
        next(batches)
    assert type(told.value) is kind and "data.num_workers=0 reads without" in str(told.value)


def test_states_of_other_data_are_refused(rows, tmp_path):
    state = Batches(rows, 6, 0).get_state()
    with pytest.raises(errors.UserError, match="trained on other rows .*aaaa.*bbbb"):
        Batches(make_rows(tmp_path, sha="b" * 64), 6, 0).set_state(state)
    with pytest.raises(errors.UserError, match="with seed 0, but the seed is 1"):
        Batches(rows, 6, 1).set_state(state)
    old = {key: value for key, value in state.items() if key != "order"}
    with pytest.raises(errors.UserError, match="another version .* order 1, this one in order 2"):
        Batches(rows, 6, 0).set_state(old)
    with pytest.raises(errors.UserError, match="saved position in the data is damaged"):
        Batches(rows, 6, 0).set_state({"global_next_index": 3})


def test_fixed_batch_is_fixed_and_without_repetition(rows):
    first, again, other = (fixed_batch(rows, 8, seed)["tokens"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert first.dtype == np.int32 and first.shape == (8, LENGTH) and (first != other).any()
    assert len(set(first[:, 0])) == 8
    many = fixed_batch(rows, 2 * COUNT + 1, 0)["tokens"][:, 0]
    counts = np.bincount(many, minlength=COUNT)
    assert counts.min() == 2 and counts.max() == 3
