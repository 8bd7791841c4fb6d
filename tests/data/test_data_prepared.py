"""Rows prepared elsewhere: the same rows and tokenizer, or a sentence that names what differs."""

import shutil
import types

import numpy as np
import pytest
from recipes import make_tokenizer

from flm_jax import data, errors
from flm_jax.data import Batches
from flm_jax.training import sources

TOKENIZER = {"name": "sentencepiece", "options": {"vocab_size": 60}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    lines = (f"the {i}th of {i % 7} sentences\n" for i in range(400))
    (folder / "a.txt").write_text("".join(lines))
    options = {"path": str(folder / "a.txt")}
    section = {"name": "text_files", "length": 16, "options": options}
    loaded = data.load_data(section, TOKENIZER, folder / "cache")
    loaded.corpus.describe()  # counts once
    (folder / "a.txt").unlink()  # the text stays where it was
    return loaded, folder / "cache"


def section(path, **more):
    return {"name": "prepared", "length": 16, "options": {"path": str(path)}, **more}


@pytest.mark.parametrize("below", ["", "rows"])
@pytest.mark.parametrize("tokenizer", [{}, TOKENIZER, {"name": "sentencepiece"}])
def test_copied_folders_give_the_same_rows_and_batches(made, tmp_path, below, tokenizer):
    loaded, cache = made
    documents = loaded.corpus.describe()["documents"]
    shutil.copytree(cache / "rows", tmp_path / "copy" / "rows")
    again = data.load_data(section(tmp_path / "copy" / below), tokenizer)
    assert again.tokenizer.fingerprint == loaded.tokenizer.fingerprint
    assert again.corpus.splits == ("train", "valid")
    for split in again.corpus.splits:
        np.testing.assert_array_equal(again.rows[split][:], loaded.rows[split][:])
    first, second = (Batches(one.rows["train"], 6, 0) for one in (loaded, again))
    next(first)
    second.set_state(first.get_state())  # a run may be moved, too
    np.testing.assert_array_equal(next(first)["tokens"], next(second)["tokens"])
    text = again.corpus.source("train")[0]
    assert text == loaded.tokenizer.decode(loaded.rows["train"][0]) and "th of" in text
    assert again.corpus.describe()["documents"].items() <= documents.items()
    with_given = data.load_data(section(tmp_path / "copy"), {}, tokenizer=loaded.tokenizer)
    assert with_given.rows == data.load_data(section(tmp_path / "copy"), {}).rows


def test_single_folders(made):
    loaded, _ = made
    paths = [str(loaded.rows[split].path) for split in ("valid", "train")]
    again = data.load_data({**section(""), "options": {"path": paths}}, {})
    assert again.rows == loaded.rows
    only = {**section(""), "options": {"path": paths[:1]}}
    with pytest.raises(errors.UserError, match="no split 'train'; it has valid"):
        data.load_data(only, {})


def test_what_does_not_match_is_refused_naming_both(made, tmp_path):
    loaded, cache = made
    ours = loaded.tokenizer.fingerprint[:12]
    for tokenizer in ({"name": "gpt2"}, {"name": "sentencepiece", "options": {"vocab_size": 61}}):
        with pytest.raises(
            errors.UserError, match=rf"\(60 ids, fingerprint {ours}\), but the conf"
        ):
            data.load_data(section(cache), tokenizer)
    other = make_tokenizer({"name": "characters"}, lambda: ["xyz"])
    both = rf"tokenizer of the model \(characters, fingerprint {other.fingerprint[:12]}\).*{ours}"
    with pytest.raises(errors.UserError, match=both):
        data.load_data(section(cache), {}, tokenizer=other)
    with pytest.raises(errors.UserError, match="prepared with data.length=16, .* has 17; set data"):
        data.load_data(section(cache, length=17), {})
    with pytest.raises(errors.UserError, match="data.packing=wrap, but the config has one_per_row"):
        data.load_data(section(cache, packing="one_per_row"), {})


def test_folders_that_do_not_go_together(made, tmp_path):
    loaded, cache = made
    shutil.copytree(cache, tmp_path / "a")
    shutil.copytree(loaded.rows["train"].path, tmp_path / "a" / "rows" / "twice")
    with pytest.raises(errors.UserError, match="both hold the split 'train'; set options.path"):
        data.load_data(section(tmp_path / "a"), {})
    for options, sentence in (
        ({}, "needs options.path: the --data_dir"),
        ({"path": str(tmp_path / "nowhere")}, "nowhere is not a folder; give a folder that"),
    ):
        with pytest.raises(errors.UserError, match=sentence):
            data.load_data({**section(""), "options": options}, {})
    with pytest.raises(errors.UserError, match="is prepared already; look at it with"):
        data.plan(section(cache), {})


def test_splits_of_different_tokenizers_are_refused(made, tmp_path):
    _, cache = made
    (tmp_path / "b.txt").write_text("another text\n" * 30)
    options = {"path": str(tmp_path / "b.txt"), "valid_path": str(tmp_path / "b.txt")}
    other = {"name": "text_files", "length": 16, "options": options}
    loaded = data.load_data(other, {"name": "characters"}, tmp_path, splits=("valid",))
    train = next((cache / "rows").glob("*train*"))
    options = {"path": [str(train), str(loaded.rows["valid"].path)]}
    with pytest.raises(errors.UserError, match="tokenizer of the other splits .* is not the one"):
        data.load_data({**section(""), "options": options}, {})


def test_a_teacher_of_another_tokenizer_is_refused_naming_both(made):
    loaded, _ = made
    names = types.SimpleNamespace
    ours = names(vocab_size=60, config=names(data=names(length=16)))

    def teacher(tokenizer, length=16):
        experiment, config = names(vocab_size=60), names(data=names(length=length))
        return names(experiment=experiment, tokenizer=tokenizer, config=config)

    sources.check(teacher(loaded.tokenizer), ours, loaded, "teacher", "runs/t")
    other = make_tokenizer({"name": "characters"}, lambda: ["xyz"])
    prints = other.fingerprint[:12], loaded.tokenizer.fingerprint[:12]
    sentence = "teacher='runs/t' was trained with another tokenizer .fingerprint {}, here {}"
    with pytest.raises(errors.UserError, match=sentence.format(*prints)):
        sources.check(teacher(other), ours, loaded, "teacher", "runs/t")
