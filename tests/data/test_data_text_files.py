"""The user's files: every way to cut them, and a sentence with file and line for what is wrong."""

import gzip
import json
import os
import pickle
import tracemalloc

import numpy as np
import pytest

from flm_jax import data, errors
from flm_jax.data import base, documents, pieces, text_files

LINES = [f"line {i} of the tale" for i in range(200)]


def put(path, content):
    content = content if isinstance(content, bytes) else content.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def as_jsonl(texts, key="text"):
    return "".join(json.dumps({key: text, "n": 1}) + "\n" for text in texts)


def everything(corpus):
    return [text for split in corpus.splits for text in corpus.source(split)]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.jsonl.gz", "a.text", "a"])
def test_kinds_of_files(tmp_path, name):
    content = as_jsonl(LINES) if "jsonl" in name else "\n".join(LINES)
    corpus = text_files.TextFiles(put(tmp_path / name, content))
    for split in base.SPLITS:
        found = corpus.source(split)
        assert list(found) == [line for line in LINES if base.split_of(line) == split]
        assert found[-1] == list(found)[-1] and found[0] == list(found)[0]  # a jump back
        assert found[1:3] == list(found)[1:3]
        with pytest.raises(IndexError):
            found[len(found)]
    assert sorted(everything(corpus)) == sorted(LINES)
    copy = pickle.loads(pickle.dumps(corpus))
    assert everything(copy) == everything(corpus)


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
def test_ways_to_cut(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(pieces, "_CHUNK", chunk)
    text = "\ufeffOne\r\ntwo\n\n\n  \nthree é\n<|end|>\nfour<|end|><|end|>five <|end\n"
    path = put(tmp_path / "t.txt", text)

    def cut(document):
        corpus = text_files.TextFiles(path, path, path, document=document)
        return list(corpus.source("train"))

    assert cut("line") == ["One", "two", "three é", "<|end|>", "four<|end|><|end|>five <|end"]
    assert cut("paragraph") == ["One\ntwo", "three é\n<|end|>\nfour<|end|><|end|>five <|end"]
    assert cut("<|end|>") == ["One\ntwo\n\n\n  \nthree é", "four", "five <|end"]
    assert cut("file") == [text.strip("\ufeff\n").replace("\r\n", "\n")]


def test_given_splits_replace_the_derived_ones(tmp_path):
    train, valid = put(tmp_path / "a.txt", "\n".join(LINES)), put(tmp_path / "b.txt", "x y\nz")
    with_valid = text_files.TextFiles(train, valid)
    assert list(with_valid.source("valid")) == ["x y", "z"]
    assert with_valid.splits == ("train", "valid") and list(with_valid.source("train")) == LINES
    with_test = text_files.TextFiles(train, test_path=valid)
    assert list(with_test.source("test")) == ["x y", "z"] and with_test.source("valid")[0] in LINES
    both = text_files.TextFiles(train, valid, valid)
    assert list(both.source("train")) == LINES
    assert both.fingerprint("train") != with_valid.fingerprint("train")
    assert both.detokenize(" a . ") == " a . "


@pytest.mark.parametrize("document", ["file", "line"])
def test_one_document_and_a_validation_file_are_enough(tmp_path, document):
    train, valid = put(tmp_path / "a.txt", "a tale " * 40), put(tmp_path / "b.txt", "tale " * 40)
    options = {"path": train, "valid_path": valid, "document": document}
    section = {"name": "text_files", "length": 8, "cache_dir": str(tmp_path), "options": options}
    loaded = data.load_data(section, {"name": "characters"})
    assert len(loaded.rows["train"]) and len(loaded.rows["valid"])
    about = loaded.corpus.describe()
    assert about["documents"] == {"train": 1, "valid": 1}
    assert about["characters"] == {"train": 279, "valid": 199}  # without the last space


def test_an_empty_test_split_is_told_only_to_who_asks_for_it(tmp_path):
    lines = [line for line in LINES if base.split_of(line) != "test"]
    corpus = text_files.TextFiles(put(tmp_path / "a.txt", "\n".join(lines)))
    whole = text_files.TextFiles(put(tmp_path / "b.txt", "\n".join(LINES)))
    texts = {split: whole.source(split) for split in base.SPLITS} | {"test": []}
    assert corpus.describe()["documents"] == {s: len(t) for s, t in texts.items()}
    assert corpus.describe()["characters"] == {s: sum(map(len, t)) for s, t in texts.items()}
    with pytest.raises(errors.UserError, match="for the 'test' split; set options.test_path, or"):
        corpus.source("test")


def test_folders_globs_and_lists(tmp_path):
    for name in ("b.txt", "a/c.txt", "a/d.jsonl.gz"):
        put(tmp_path / name, as_jsonl([name]) if "json" in name else name)
    put(tmp_path / "notes.md", "not text for training")

    def read(path):
        return list(text_files.TextFiles(path, path, path).source("train"))

    assert read(str(tmp_path)) == ["a/c.txt", "a/d.jsonl.gz", "b.txt"]
    assert read(f"{tmp_path}/*.txt") == ["b.txt"]
    assert read(f"{tmp_path}/**/*.txt") == ["a/c.txt", "b.txt"]
    assert read([f"{tmp_path}/b.txt", f"{tmp_path}/a"]) == ["b.txt", "a/c.txt", "a/d.jsonl.gz"]
    assert read(f"{tmp_path}/b.txt, {tmp_path}/a/c.txt") == ["b.txt", "a/c.txt"]
    assert read([f"{tmp_path}/b.txt"] * 2) == ["b.txt"]
    assert read(tmp_path / "notes.md") == ["not text for training"]
    for path in (str(tmp_path), [str(tmp_path)]):  # text from the command line, a list from a file
        options = {"path": path, "valid_path": path, "test_path": path}
        assert len(everything(data.load_corpus({"name": "text_files", "options": options}))) == 9


def test_fingerprints_follow_content_and_options(tmp_path, monkeypatch):
    path = put(tmp_path / "a.txt", "\n".join(LINES))
    prints = [text_files.TextFiles(path).fingerprint(split) for split in base.SPLITS]
    prints += [text_files.TextFiles(path, document="paragraph").fingerprint("train")]
    prints += [text_files.TextFiles(path, json_key="body").fingerprint("train")]
    prints += [
        text_files.TextFiles(put(tmp_path / "a.jsonl", "\n".join(LINES))).fingerprint("train")
    ]
    put(tmp_path / "a.txt", "\n".join([*LINES[:-1], LINES[-1].upper()]))
    prints += [text_files.TextFiles(path).fingerprint("train")]
    monkeypatch.setattr(text_files, "_HASHED_FULLY", 10)
    path = put(tmp_path / "b.txt", "x" * (3 << 20))
    prints += [text_files.TextFiles(path).fingerprint("train")]
    put(tmp_path / "b.txt", "x" * (3 << 20) + "y")
    prints += [text_files.TextFiles(path).fingerprint("train")]
    os.utime(path, (1, 1))  # the middle of a large file is not read, its date is
    prints += [text_files.TextFiles(path).fingerprint("train")]
    assert len(set(prints)) == len(prints)
    moved = put(tmp_path / "c" / "b.txt", "\n".join(LINES))
    monkeypatch.undo()
    assert text_files.TextFiles(moved).fingerprint("train") == prints[0]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"", r"a\.txt is empty; remove it"),
        ("a.txt.gz", b"", r"a\.txt\.gz is empty; remove it"),
        ("a.txt", b" \n\n", r"no documents in .*a\.txt; give files with text"),
        ("a.txt", b"good\nbad \xe9\n", r"a\.txt is not UTF-8: line 2 has the byte 0xe9"),
        ("a.txt", "text".encode("utf-16"), r"a\.txt is not UTF-8 but UTF-16; save it as UTF-8"),
        ("a.jsonl", as_jsonl(LINES[:2]) + "{oops\n", r"a\.jsonl line 3 is not JSON \(Expecting"),
        ("a.jsonl", "[1]\n", r"a\.jsonl line 1 is JSON but not an object"),
        (
            "a.jsonl",
            as_jsonl(["x"]) + as_jsonl(["x"], "body"),
            "line 2 has no text under 'text'.*body",
        ),
        ("a.jsonl", '{"text": 5}\n', r"line 1 has no text under 'text'.*keys with text: none"),
        ("a.jsonl", '\n{"text": "a\\ud800b"}\n', r"a\.jsonl line 2 has half of a surrogate pair"),
        ("a.jsonl", b'{"text": "ok"}\n\xff\n', r"a\.jsonl is not UTF-8: line 2"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl line 1 is not JSON"),
        (
            "a.txt",
            "only one line",
            r"1 documents \(options.document='line'\) in .* too few",
        ),
    ],
)
def test_bad_files_name_file_and_line(tmp_path, name, content, sentence):
    corpus = text_files.TextFiles(put(tmp_path / name, content))
    with pytest.raises(errors.UserError, match=sentence):
        everything(corpus)


@pytest.mark.parametrize("document", ["line", "paragraph", "file", "<|end|>"])
def test_line_numbers_of_bad_bytes_for_every_cut(tmp_path, document):
    content = b"one\ntwo\n\nthree<|end|>\nfour\n<|end|>five \xff\nsix\n"
    corpus = text_files.TextFiles(put(tmp_path / "a.txt", content), document=document)
    with pytest.raises(errors.UserError, match="not UTF-8: line 6 has the byte 0xff"):
        corpus.source("train")


def test_bad_paths_and_options(tmp_path):
    for options, sentence in (
        ({}, "needs options.path: a file, a folder or a glob"),
        ({"path": str(tmp_path / "no.txt")}, r"there is no file .*no\.txt; correct the path"),
        ({"path": str(tmp_path / "*.txt")}, r"no file matches .*\*\.txt"),
        ({"path": str(tmp_path)}, r"the folder .* holds no \.txt, \.jsonl"),
        ({"path": "x", "document": ""}, "options.document is empty; use 'line'"),
        ({"path": "x", "encoding": "latin-1"}, "'text_files' has no option 'encoding'"),
    ):
        with pytest.raises(errors.UserError, match=sentence):
            data.load_corpus({"name": "text_files", "options": options})


def test_damaged_gzip_files(tmp_path):
    whole = gzip.compress("\n".join(LINES).encode())
    for content in (
        whole[: len(whole) // 2],
        b"plain text",
        whole[:30] + b"\xff" * 40 + whole[70:],
    ):
        (tmp_path / "a.txt.gz").write_bytes(content)
        corpus = text_files.TextFiles(str(tmp_path / "a.txt.gz"))
        with pytest.raises(errors.UserError, match=r"a\.txt\.gz is damaged or not complete"):
            corpus.source("train")


def test_a_file_that_shrinks_while_in_use(tmp_path):
    path = put(tmp_path / "a.txt", "\n".join(LINES))
    found = text_files.TextFiles(path, path, path).source("train")
    put(tmp_path / "a.txt", "short")
    with pytest.raises(errors.UserError, match="became shorter while it was read"):
        found[150]


GOOD, BAD_BYTES, NUL = b"first good one", b"caf\xe9 au lait", b"nul \0 byte"
BAD_JSON = (b'{"text": "a\\ud800b"}', b'{"text": "a\\u0000b"}', b'{"text": "a\xffb"}')


@pytest.mark.parametrize("document", ["line", "paragraph", "<|end|>"])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_bad_text_is_refused_replaced_or_left_out_and_counted(tmp_path, caplog, name, document):
    between = {"line": b"\n", "paragraph": b"\n\n"}.get(document, b"<|end|>")
    path = put(tmp_path / name, between.join([GOOD, BAD_BYTES, GOOD, NUL, b"last"]))

    def read(policy):
        caplog.clear()
        corpus = text_files.TextFiles(path, path, path, document=document, bad_text=policy)
        return list(corpus.source("train")), caplog.text

    with pytest.raises(errors.UserError, match="0xe9.*or set options.bad_text to replace or skip"):
        read("stop")
    left, told = read("skip")
    assert left == ["first good one", "first good one", "last"]
    line = {"line": 2, "paragraph": 3}.get(document, 1)
    words = (
        f"2 documents of the train files were no UTF-8 text or held NUL and were {{}}{path} line "
    )
    assert words.format("left out (options.bad_text=skip); the first one: ") + str(line) in told
    repaired, told = read("replace")
    assert repaired == [left[0], "caf\ufffd au lait", left[1], "nul \ufffd byte", "last"]
    assert words.format("repaired (options.bad_text=replace); the first one: ") in told
    prints = {
        text_files.TextFiles(path, bad_text=policy).fingerprint("train")
        for policy in documents.BAD_TEXT
    }
    assert len(prints) == 3  # rows of another policy are other rows


def test_nul_bytes_are_told_with_their_line(tmp_path):
    for content, line in ((b"one\n\0two", 2), ("text".encode("utf-16-le"), 1)):
        corpus = text_files.TextFiles(put(tmp_path / "a.txt", content), document="file")
        with pytest.raises(errors.UserError, match=f"line {line} has a NUL byte, so it is perhaps"):
            corpus.source("train")


@pytest.mark.parametrize("record", BAD_JSON)
def test_bad_text_in_json(tmp_path, record):
    path = put(tmp_path / "a.jsonl", b'{"text": "good"}\n' + record + b'\n{"text": "end"}\n')

    def read(policy):
        return list(text_files.TextFiles(path, path, path, bad_text=policy).source("train"))

    with pytest.raises(errors.UserError, match="line 2 .*options.bad_text"):
        read("stop")
    assert read("skip") == ["good", "end"] and read("replace") == ["good", "a\ufffdb", "end"]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl"])
@pytest.mark.parametrize("document", ["line", "paragraph", "file", "<|end|>"])
def test_a_line_of_100_megabytes_is_refused_in_little_memory(tmp_path, name, document):
    with (gzip.open if name.endswith("gz") else open)(tmp_path / name, "wb") as file:
        file.write(b"ok\n\n<|end|>" if "jsonl" not in name else b'{"text": "ok"}\n')
        for _ in range(100):
            file.write(b"a" * 10**6)
    corpus = text_files.TextFiles(str(tmp_path / name), document=document)
    tracemalloc.start()
    sentence = r"document of more than 12,000,000 bytes from line \d on; cut the text finer"
    with pytest.raises(errors.UserError, match=sentence):
        corpus.source("train")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


@pytest.mark.parametrize("document", ["line", "paragraph", "file", "<|end|>"])
def test_the_longest_document_is_just_accepted(tmp_path, document):
    path = put(tmp_path / "a.txt", "a" * 30)

    def read(longest):
        corpus = text_files.TextFiles(path, path, path, document=document, longest_document=longest)
        return list(corpus.source("train"))

    assert read(30) == read(0) == ["a" * 30]
    with pytest.raises(errors.UserError, match="more than 29 bytes from line 1 on"):
        read(29)


@pytest.mark.parametrize("document, mark", [("paragraph", "\n\n"), ("<|end|>", "\n\n<|end|>")])
def test_many_short_lines_make_a_long_document(tmp_path, document, mark):
    path = put(tmp_path / "a.txt", "x" + mark + "aaaa\n" * 8 + mark + "y")
    corpus = text_files.TextFiles(path, path, path, document=document, longest_document=30)
    with pytest.raises(errors.UserError, match="more than 30 bytes from line 3 on; cut the text"):
        corpus.source("train")


def test_a_long_gzip_file_that_is_cut_off(tmp_path):
    noise = np.random.default_rng(0).integers(97, 123, (4000, 50)).astype(np.uint8)
    whole = gzip.compress(b"\n".join(row.tobytes() for row in noise))
    (tmp_path / "a.txt.gz").write_bytes(whole[:-999])
    with pytest.raises(errors.UserError, match=r"a\.txt\.gz is damaged or not complete .*again"):
        text_files.TextFiles(str(tmp_path / "a.txt.gz")).source("train")


def test_files_that_vanish_in_between(tmp_path):
    path = put(tmp_path / "a.txt", "one\ntwo")
    corpus = text_files.TextFiles(path, path, path)
    source = pickle.loads(pickle.dumps(corpus.source("train")))
    (tmp_path / "a.txt").unlink()
    for read in (lambda: source[0], lambda: corpus.fingerprint("train")):
        with pytest.raises(errors.UserError, match=r"cannot read .*a\.txt: No such file .*correct"):
            read()


def test_a_validation_file_of_blank_lines(tmp_path):
    path, blank = put(tmp_path / "a.txt", "one\ntwo"), put(tmp_path / "b.txt", "\n\n")
    corpus = text_files.TextFiles(path, blank, path)
    with pytest.raises(errors.UserError, match=r"no documents in .*b\.txt; give files with text"):
        corpus.source("valid")


def test_files_given_twice_are_read_once_and_copies_are_told(tmp_path, caplog):
    path = put(tmp_path / "a.txt", "one\ntwo")
    (tmp_path / "link.txt").symlink_to(path)
    twice = [path, str(tmp_path / "link.txt"), f"{tmp_path}/./a.txt"]
    corpus = text_files.TextFiles(twice, path, path)
    assert list(corpus.source("train")) == ["one", "two"]
    corpus.fingerprint("train")
    assert not caplog.text
    put(tmp_path / "copy.txt", "one\ntwo")
    text_files.TextFiles(str(tmp_path)).fingerprint("train")
    assert "copy.txt has the same content as" in caplog.text


def test_places_of_many_documents_are_kept_on_disk(tmp_path, monkeypatch):
    path = put(tmp_path / "a.txt", "\n".join(LINES))
    in_memory = [list(text_files.TextFiles(path).source(split)) for split in base.SPLITS]
    monkeypatch.setattr(documents, "_SPILL", 24)
    corpus = text_files.TextFiles(path)
    assert [list(corpus.source(split)) for split in base.SPLITS] == in_memory
    places = corpus.source("train").places_N3
    assert isinstance(places, np.memmap) or isinstance(places.base, np.memmap)


def test_bad_text_must_be_known(tmp_path):
    with pytest.raises(
        errors.UserError, match="bad_text is 'fix', but must be stop, replace, skip"
    ):
        text_files.TextFiles(put(tmp_path / "a.txt", "a"), bad_text="fix")
