"""Rows drawn from a known truth: the same whatever happens, and read as any prepared rows."""

import hashlib

import numpy as np
import pytest

from flm_jax import data
from flm_jax.errors import UserError
from flm_jax.lab.truth import rows as lib
from flm_jax.tokenizers.characters import Characters

LENGTH = 6


class Fake:
    """Draws digests of the index and the seed; counts how many rows it drew."""

    name, tokenizer, fingerprint = "fake", Characters("abcdefgh"), "f" * 64

    def __init__(self, fails_after=10**9):
        self.drawn, self.fails_after = 0, fails_after

    def score(self, tokens_NL):
        raise NotImplementedError

    def sample(self, indices_N, length, seed):
        self.drawn += len(indices_N)
        if self.drawn > self.fails_after:
            raise KeyboardInterrupt
        texts = (hashlib.sha256(f"{i} {seed}".encode()).digest() for i in indices_N)
        body = np.array([list(text[: length - 1]) for text in texts]) % 8 + 4
        return np.concatenate([np.ones((len(body), 1), int), body], axis=1).astype(np.int32)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(lib, "_BLOCK", 8)
    monkeypatch.setattr(lib, "SHARD_ROWS", 20)


def write(folder, split="train", count=50, seed=3, truth=None):
    return lib.write(truth or Fake(), "fake.bin", str(folder), split, count, LENGTH, seed)


def test_an_interrupted_command_goes_on_where_a_shard_ended(tmp_path):
    whole, made = write(tmp_path / "whole")
    assert made and len(whole) == 50 and whole[:].shape == (50, LENGTH)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cut", truth=Fake(fails_after=47))
    again = Fake()
    cut, _ = write(tmp_path / "cut", truth=again)
    assert again.drawn == 10  # two shards of twenty were there
    assert cut.fingerprint == whole.fingerprint
    np.testing.assert_array_equal(cut[:], whole[:])
    assert write(tmp_path / "cut", truth=again) == (cut, False) and again.drawn == 10


def test_splits_and_seeds_have_rows_of_their_own_and_more_begin_with_the_same(tmp_path):
    rows = {split: write(tmp_path, split)[0][:] for split in ("train", "valid")}
    both = np.concatenate(list(rows.values()))
    assert len(np.unique(both, axis=0)) == 100
    assert (write(tmp_path, seed=4)[0][:] != rows["train"]).any()
    np.testing.assert_array_equal(write(tmp_path, count=70)[0][:50], rows["train"])


def test_training_reads_them_token_for_token(tmp_path):
    wanted = {split: write(tmp_path, split)[0] for split in ("train", "valid")}
    section = {"name": "prepared", "length": LENGTH, "options": {"path": str(tmp_path)}}
    found = data.load_data(section, {})
    for split, rows in wanted.items():
        np.testing.assert_array_equal(found.rows[split][:], rows[:])
    assert found.tokenizer.fingerprint == Fake.tokenizer.fingerprint
    assert found.corpus.describe()["documents"] == {"train": 50, "valid": 50}


@pytest.mark.parametrize(
    ("count", "length", "sentence"),
    [(0, 6, "--rows=0 must be from 1"), (1 << 29, 6, "to 268,435,456"), (5, 2, "length of 2")],
)
def test_sizes_that_cannot_be_are_refused(tmp_path, count, length, sentence):
    with pytest.raises(UserError, match=sentence):
        lib.write(Fake(), "", str(tmp_path), "train", count, length, 0)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "rows").write_text("a file")
    with pytest.raises(UserError, match="cannot write rows to"):
        write(tmp_path)
