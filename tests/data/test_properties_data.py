"""From files to rows and their order: nothing is lost, whatever the text and however it is cut."""

import gzip
import json
from unittest import mock

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from properties import lean

from flm_jax.data import documents, first_bytes, paths, wrap
from flm_jax.data import pieces as pieces_lib
from flm_jax.data.shuffle import shuffled
from flm_jax.errors import UserError

BOS, EOS = 1, 2
DOCUMENTS = st.lists(st.lists(st.integers(3, 2**31 - 1), max_size=9), max_size=12)


# Wrapping


def by_definition(groups, length, insert_eos):
    """Token by token: the documents of a group, EOS behind each, in pieces of L-2."""
    for group in groups:
        stream = [t for document in group for t in [*document, *[EOS] * insert_eos]]
        while len(stream) >= length - 2:
            yield [BOS, *stream[: length - 2], EOS]
            stream = stream[length - 2 :]


@lean
@hypothesis.given(
    DOCUMENTS,
    st.integers(3, 9),
    st.sampled_from([0, 1, 2, 5, 100]),
    st.booleans(),
    st.sampled_from([1, 4, 9, 1 << 20]),
)
def test_rows_hold_the_stream_however_it_is_buffered(tokens, length, every, insert_eos, buffer):
    with mock.patch.object(wrap, "_BUFFER", buffer):
        blocks = list(wrap.wrap(iter(tokens), length, BOS, EOS, every, insert_eos))
    assert all(block.dtype == np.int32 and len(block) for block in blocks)
    size = every or len(tokens) or 1
    groups = [tokens[i : i + size] for i in range(0, len(tokens), size)]
    rows = [row.tolist() for block in blocks for row in block]
    assert rows == list(by_definition(groups, length, insert_eos))


@lean
@hypothesis.given(st.lists(st.lists(st.integers(3, 99), max_size=12)), st.integers(3, 7))
def test_the_wrapper_keeps_what_fills_no_row(pieces, length):
    wrapper, inner, taken = wrap.Wrapper(length, BOS, EOS), length - 2, []
    for i, piece in enumerate(pieces):
        rows_NL = wrapper.add(np.array(piece, np.int64))
        before = [t for earlier in pieces[:i] for t in earlier]
        for n in range(1, len(rows_NL) + 1):  # so far as these rows go, this much is used
            assert len(before) + wrapper.used(n) == len(taken) + n * inner
        assert (rows_NL[:, 0] == BOS).all() and (rows_NL[:, -1] == EOS).all()
        taken += rows_NL[:, 1:-1].ravel().tolist()
    stream = [t for piece in pieces for t in piece]
    assert taken == stream[: len(stream) // inner * inner]
    wrapper.drop_remainder()
    assert len(wrapper.add(np.arange(inner - 1))) == 0


@lean
@hypothesis.given(DOCUMENTS, st.integers(11, 15), st.integers(1, 60), st.sampled_from([0, 1, 7]))
def test_one_document_per_row_comes_back(tokens, length, buffer, pad):
    with mock.patch.object(wrap, "_BUFFER", buffer):
        rows = [r.tolist() for b in wrap.one_per_row(tokens, length, BOS, EOS, pad) for r in b]
    assert rows == [
        [BOS, *document, EOS, *[pad] * (length - 2 - len(document))] for document in tokens
    ]
    if pad == 0:
        parts = [wrap.split_row(row, BOS, EOS) for row in rows]
        assert [[t for part in found for t in part if t] for found in parts] == tokens


# Shuffling

COUNTS = st.integers(1, 300) | st.sampled_from([1023, 1024, 1025, 4096, 10_007])
SEEDS = st.integers(0, 2**63)


@lean
@hypothesis.given(COUNTS, SEEDS, st.integers(0, 10**9))
def test_every_epoch_is_a_permutation(count, seed, epoch):
    order_N = shuffled(np.arange(count) + epoch * count, count, seed)
    assert order_N.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order_N), np.arange(count))


@lean
@hypothesis.given(st.data(), COUNTS, SEEDS)
def test_the_order_goes_on_from_any_place(data, count, seed):
    place_N = np.arange(3 * count)
    whole_N = shuffled(place_N.copy(), count, seed)
    start = data.draw(st.integers(0, 3 * count - 1))
    np.testing.assert_array_equal(shuffled(place_N[start:], count, seed), whole_N[start:])
    some_N = np.array(data.draw(st.lists(st.integers(0, 3 * count - 1), max_size=8)), np.int64)
    np.testing.assert_array_equal(shuffled(some_N, count, seed), whole_N[some_N])


# Documents

# White space of every kind, ends of lines, marks of order; no NUL and no surrogates.
PIECES = [
    "a",
    "b",
    "ab",
    "é",
    "{",
    '"',
    "\n",
    "\n",
    "\n\n",
    "\r\n",
    "\r",
    "\t",
    "  ",
    "\v\f\x1c\x85",
]
TEXT = st.one_of(
    st.lists(st.sampled_from([*PIECES, "\u2028", "\ufeff", "\xa0", "😀", "\uffff"])).map("".join),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
)
TEXTS = st.lists(TEXT, max_size=6)


def kept(text: str) -> str:
    """What is left of a document."""
    return text.removeprefix("\ufeff").strip().replace("\r\n", "\n")


def read(path, content: bytes, document="line", bad_text="stop", **options):
    """(the documents of a file, its reader); each place is read again, backwards."""
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    reader = documents.Reader([path], document, "text", bad_text, **options)
    try:
        found = list(reader.scan()) if content else []
        places = documents.Places()
        for place, _ in found:
            places.add(place)
        located = documents.Located(reader, places.all_N3())
        assert [located[i] for i in range(len(found))][::-1] == [t for _, t in found][::-1]
        assert located[::-1] == [text for _, text in found][::-1]
    finally:
        reader.close()
    return [text for _, text in found], reader


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("properties")


@lean
@hypothesis.given(TEXT, st.sampled_from(["a.txt", "b.txt.gz"]), st.integers(1, 30))
def test_any_text_comes_back_from_a_file_of_text(folder, text, name, chunk):
    path, content = folder / name, text.encode()
    assert read(path, content)[0] == [t for t in map(kept, text.split("\n")) if t]
    assert read(path, content, "file")[0] == [t for t in [kept(text)] if t]
    with mock.patch.object(pieces_lib, "_CHUNK", chunk):
        for separator in ("ab", "\n\n", "é"):
            pieces = [t for t in map(kept, text.split(separator)) if t]
            assert read(path, content, separator)[0] == pieces
    paragraphs = [""]
    for line in text.split("\n"):
        if line.encode().strip():  # only blanks of ASCII make a blank line
            paragraphs[-1] += line + "\n"
        else:
            paragraphs.append("")
    if any(paragraphs) or not text:
        assert read(path, content, "paragraph")[0] == [t for t in map(kept, paragraphs) if t]
    else:
        with pytest.raises(UserError, match="is empty; remove it"):
            read(path, content, "paragraph")


@lean
@hypothesis.given(TEXTS, st.sampled_from(["a.jsonl", "b.jsonl.gz"]), st.booleans(), st.booleans())
def test_any_documents_come_back_from_json_lines(folder, texts, name, ascii_only, indentation):
    lines = [json.dumps({"n": 1, "text": text}, ensure_ascii=ascii_only) for text in texts]
    content = "\n".join(lines).encode()
    found, reader = read(folder / name, content, keep_indentation=indentation)
    assert reader.bad == reader.missing == 0

    def whole(text):
        lead = text[: len(text) - len(text.lstrip())].rpartition("\n")[2]
        return (lead if indentation else "") + text.strip().replace("\r\n", "\n")

    assert found == [whole(text) for text in texts if text.strip()]
    if content:
        reader.check_kinds()


BAD = st.sampled_from([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\0"])


@lean
@hypothesis.given(
    st.lists(st.tuples(st.text("ab é", min_size=1), st.none() | BAD), min_size=1, max_size=6),
    st.sampled_from(["a.txt", "b.txt.gz", "c.jsonl"]),
)
def test_bad_bytes_are_told_repaired_or_left_out(folder, lines, name):
    frame = '{"text": "a%s"}' if name == "c.jsonl" else "a%s"
    pieces = [(frame % text).encode() for text, _ in lines]
    data = [
        piece[:10] + (bad or b"") + piece[10:] if "jsonl" in name else piece + (bad or b"")
        for piece, (_, bad) in zip(pieces, lines, strict=True)
    ]
    content, path = b"\n".join(data), folder / name
    bad_lines = [i for i, (_, bad) in enumerate(lines, 1) if bad]
    good = [kept("a" + text) for text, bad in lines if not bad]
    skipped, reader = read(path, content, bad_text="skip")
    assert skipped == good
    assert reader.bad + reader.missing == len(bad_lines)
    replaced, reader = read(path, content, bad_text="replace")
    with_nul = sum(bad == b"\0" for _, bad in lines) if "jsonl" in name else 0  # is no JSON
    assert len(replaced) == len(lines) - with_nul == len(lines) - reader.missing
    assert sum("\ufffd" in text for text in replaced) == reader.bad == len(bad_lines) - with_nul
    if not bad_lines:
        assert read(path, content)[0] == good
        return
    with pytest.raises(UserError, match=f"{path.name}.* line {bad_lines[0]} "):
        read(path, content)


# The first bytes

MAGIC = (*first_bytes._NO_TEXT, *first_bytes._NO_UTF8)


@hypothesis.settings(lean, max_examples=100)
@hypothesis.given(
    st.sampled_from([b"", b"", *MAGIC]),
    st.binary(max_size=300) | TEXT.map(str.encode),
    st.sampled_from(["txt", "jsonl"]),
)
def test_any_first_bytes_get_a_sentence_or_none(magic, head, kind):
    head = magic + head
    for guessed in (True, False):
        sentence = first_bytes.complaint(head, kind, guessed, "line")
        assert isinstance(sentence, str) and "\n" not in sentence
        if head.startswith(MAGIC):
            assert sentence.startswith("is not ")
        elif kind == "txt" and b"\n" in head and not (guessed and head.strip()[:1] in b"{[\xef"):
            assert not sentence


@lean
@hypothesis.given(
    st.lists(st.dictionaries(TEXT, st.none() | TEXT | st.integers(), min_size=1), min_size=1),
    st.sampled_from(["", "\ufeff"]),
    st.booleans(),
)
def test_json_is_known_by_its_first_bytes(records, mark, ascii_only):
    def complaint(text, kind, guessed=True):
        return first_bytes.complaint((mark + text).encode(), kind, guessed, "line")

    lines = "".join(json.dumps(record, ensure_ascii=ascii_only) + "\n" for record in records)
    assert complaint(lines, "jsonl") == ""
    assert "looks like JSON lines" in complaint(lines, "txt")
    assert complaint(lines, "txt", guessed=False) == ""
    array = json.dumps(records, ensure_ascii=ascii_only)
    spread = json.dumps(records[0], indent=1, ensure_ascii=ascii_only)
    for kind in ("jsonl", "txt"):
        assert "is one JSON array" in complaint(array, kind)
        assert "over several lines" in complaint(spread, kind)


# Paths

NAMES = st.text("ab ,[]*?~é-.", min_size=1, max_size=8).map(lambda name: f"n{name}n")


@lean
@hypothesis.given(st.sets(NAMES, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_any_name_is_found_as_it_is_written(tmp_path_factory, names, random):
    folder = tmp_path_factory.mktemp("names")
    files = sorted(folder / f"{name}.txt" for name in names)
    for path in files:
        path.write_text("text")
    assert paths.find(str(folder)) == tuple(files)
    assert paths.find(f"{folder}/*.txt") == tuple(files)
    assert all(paths.find(str(path)) == (path,) for path in files)
    given_ = [random.choice(files) for _ in range(5)]
    assert paths.find(list(map(str, given_))) == tuple(dict.fromkeys(given_))
    if not any("," in name for name in names):
        assert paths.find(", ".join(map(str, given_))) == tuple(dict.fromkeys(given_))
