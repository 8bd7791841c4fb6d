"""Files that are not what their names say are refused; JSON lines are read as such, wherever."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import pytest

from flm_jax import errors
from flm_jax.data import base, text_files
from flm_jax.data.published import PUBLISHED

TEXTS = [f"story {i} of a cat" for i in range(6)]
AS_LINES = "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in TEXTS)
TEXT = "\n".join(TEXTS)
RAW = AS_LINES.splitlines()
# Without the time of its making, which would make it another test in every worker.
GZIPPED = gzip.compress(TEXT.encode(), mtime=0)


def put(path, content):
    content = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix.lower() == ".gz" else content)
    return str(path)


def read(path, corpus=text_files.TextFiles, **options):
    return list(corpus(path, path, path, **options).source("train"))


@pytest.mark.parametrize("corpus", [text_files.TextFiles, PUBLISHED["jsonl"]])
@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.JSON", "a.ndjson", "a.jsonl"])
def test_json_lines_by_any_of_their_names(tmp_path, name, corpus):
    assert read(put(tmp_path / name, AS_LINES), corpus) == TEXTS


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.data", "a"])
@pytest.mark.parametrize("before", ["", "\ufeff", "\n \n"])
def test_json_lines_under_another_name_need_a_word(tmp_path, name, before):
    path = put(tmp_path / name, before + AS_LINES)
    with pytest.raises(errors.UserError, match=r"a.* looks like JSON lines; name it \.jsonl or"):
        read(path)
    assert read(path, format="jsonl") == TEXTS
    assert read(path, format="text") == RAW
    # The format is part of the kind of file, which fingerprints always held.
    prints = [text_files.TextFiles(path, format=f).fingerprint("train") for f in ("auto", "text")]
    assert prints[0] == prints[1]


def test_words_in_braces_are_text(tmp_path):
    for text in ('{{"a"}} of a template', '{"no member"} is a set', "[1] a reference", "[", "{}"):
        assert read(put(tmp_path / "a.txt", text)) == [text]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt"])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (json.dumps([{"text": text} for text in TEXTS]), "is one JSON array, not JSON lines"),
        (json.dumps([{"text": TEXT}] * 9, indent=2), "is one JSON array.*object per line .jq -c"),
        (json.dumps({"text": TEXT}, indent=4), "has JSON objects over several lines"),
    ],
)
def test_arrays_and_spread_objects_get_one_sentence(tmp_path, name, content, sentence):
    with pytest.raises(errors.UserError, match=sentence) as told:
        read(put(tmp_path / name, content), bad_text="skip")
    assert "\n" not in str(told.value)
    assert ("options.format=text" in str(told.value)) == name.endswith("txt")


def tar(name):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(TEXT)
        archive.addfile(entry, io.BytesIO(TEXT.encode()))
    return made.getvalue()


def zipped():
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("a.txt", TEXT)
    return made.getvalue()


@pytest.mark.parametrize("bad_text", ["stop", "skip", "replace"])
@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", GZIPPED, "is not text but a gzip file; give its name"),
        ("a.txt", bz2.compress(TEXT.encode()), "is not text but a bzip2 file; unpack it"),
        ("a.txt", lzma.compress(TEXT.encode()), "is not text but an xz file; unpack it"),
        ("a.jsonl", b"\x28\xb5\x2f\xfd" + b"x" * 9, "is not text but a zstd file; unpack it"),
        ("a.docx", zipped(), "is not text but a zip archive"),
        ("a.tar.gz", tar("a.txt"), "is not text but a tar archive"),
        ("a.pdf", b"%PDF-1.7\nhello\n", "is not text but a PDF; save it as text"),
        ("a.parquet", b"PAR1\x15\x04", "is not text but a Parquet file; use data.name=hugg"),
        ("a.txt", TEXT.encode("utf-16"), "is not UTF-8 but UTF-16"),
        ("a.txt", TEXT.encode("utf-32"), "is not UTF-8 but UTF-32"),
        ("a.txt", TEXT.replace("\n", "\r"), "ends its lines by carriage returns alone"),
        ("a.jsonl", AS_LINES.replace("\n", "\r"), "ends its lines by carriage returns alone"),
    ],
)
def test_what_is_no_text_is_refused_whatever_the_policy(
    tmp_path, name, content, sentence, bad_text
):
    with pytest.raises(errors.UserError, match=sentence):
        read(put(tmp_path / name, content), bad_text=bad_text)


def test_carriage_returns_can_be_the_separator(tmp_path):
    path = put(tmp_path / "a.txt", TEXT.replace("\n", "\r"))
    assert read(path, document="\r") == TEXTS


LINES = ['{"text": null}', '{"id": 3}', '{"text": 7}', '{"text": ["a"]}', "[1, 2]", '{"text": "cut']


@pytest.mark.parametrize("line", LINES)
def test_lines_without_text_are_bad_text(tmp_path, caplog, line):
    path = put(tmp_path / "a.jsonl", RAW[0] + "\n" + line + "\n" + RAW[1] + "\n\n" + line)
    with pytest.raises(errors.UserError, match="line 2 .*; options.bad_text=skip leaves"):
        read(path)
    for policy in ("skip", "replace"):  # there is nothing to repair
        caplog.clear()
        corpus = text_files.TextFiles(path, path, path, bad_text=policy)
        found = corpus.source("train")
        assert list(found) == TEXTS[:2] and found[1] == TEXTS[1]
        assert "2 lines of the train files had no text under 'text' and were left out" in (
            caplog.text
        )
        assert f"bad_text={policy}); the first one: {path} line 2" in caplog.text
        assert "no UTF-8" not in caplog.text


def test_a_wrong_key_leaves_nothing_and_says_so(tmp_path):
    path = put(tmp_path / "a.jsonl", AS_LINES)
    with pytest.raises(errors.UserError, match="there are no documents in"):
        read(path, bad_text="skip", json_key="body")


def test_the_format_must_be_known(tmp_path):
    with pytest.raises(errors.UserError, match="format is 'csv', but must be auto, text, jsonl"):
        text_files.TextFiles(put(tmp_path / "a.txt", "a"), format="csv")


CODE = "def f(x):\n    return x\n\n\tyield\nend\n"


def test_indentation_is_kept_when_asked_for_and_its_loss_is_told(tmp_path, caplog):
    path = put(tmp_path / "a.txt", CODE)
    assert read(path) == ["def f(x):", "return x", "yield", "end"]
    assert "2 documents of the train files begin with tabs or several blanks" in caplog.text
    caplog.clear()
    kept = read(path, keep_indentation=True)
    assert kept == ["def f(x):", "    return x", "\tyield", "end"] and not caplog.text
    whole = put(tmp_path / "b.txt", " \r\n\r\n  def f(x):\r\n    return x \r\n \r\n")
    assert read(whole, document="file", keep_indentation=True) == ["  def f(x):\n    return x"]
    lines = put(tmp_path / "c.jsonl", json.dumps({"text": "\n    return x\n"}))
    assert read(lines, keep_indentation=True) == ["    return x"]


def test_the_option_changes_no_old_fingerprint_and_no_side(tmp_path):
    lines = "".join(f"{'  ' * (i % 3)}line {i}\n" for i in range(200))
    path = put(tmp_path / "a.txt", lines)
    plain, kept = (text_files.TextFiles(path, keep_indentation=keep) for keep in (False, True))
    # Recorded before the option was there: rows of old runs are found again.
    assert plain.fingerprint("train") == RECORDED
    assert kept.fingerprint("train") != RECORDED
    for split in base.SPLITS:
        found = list(kept.source(split))
        assert [text.strip() for text in found] == list(plain.source(split))
        assert "".join(found).count("  ") or split != "train"


RECORDED = "bcbb49c980d66441e352a56ae7dbf89a1f4ed531d2963bc9a1b1b535c45dc1e9"
