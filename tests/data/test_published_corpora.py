"""Published corpora in their real layouts: documents, order, splits, and what is not right."""

import gzip
import json
import lzma
import os
import pickle
import tarfile
import tracemalloc
import zipfile

import published_layouts as layouts
import pytest

from flm_jax.data import pieces
from flm_jax.data.published import PUBLISHED, files, streams
from flm_jax.data.published.lm1b import Lm1b
from flm_jax.data.published.openwebtext import OpenWebText
from flm_jax.data.published.ptb import Ptb
from flm_jax.data.published.text8 import Text8
from flm_jax.data.published.tinystories import TinyStories
from flm_jax.data.published.wikitext import WikiText2, WikiText103
from flm_jax.errors import UserError


@pytest.fixture(autouse=True)
def private_caches(tmp_path, monkeypatch):
    """No file of the user is found, no cache of the user is written."""
    monkeypatch.setenv("FLM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-home"))
    for name in ("FLM_JAX_DATA", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_lm1b_from_archive_and_folder(tmp_path):
    half = len(layouts.SENTENCES) // 2
    archive = Lm1b(str(layouts.lm1b_archive(tmp_path)))
    assert list(archive.source("train")) == layouts.SENTENCES[half:] + layouts.SENTENCES[:half]
    folder = Lm1b(str(layouts.lm1b_folder(tmp_path)))
    assert list(folder.source("train")) == layouts.SENTENCES
    for corpus in (archive, folder):
        assert list(corpus.source("test")) == layouts.SENTENCES[::-1]
        assert list(corpus.source("valid")) == layouts.SENTENCES[::-1]
        assert corpus.describe()["documents"] == {"train": 6, "valid": 6, "test": 6}
        assert corpus.detokenize(corpus.source("test")[4]).startswith("Is this the end? Nobody")
    assert archive.fingerprint("train") != archive.fingerprint("test")


def test_lm1b_is_found_by_environment_and_cache(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="FLM_JAX_DATA .not set.*www.statmt.org.*download=True"):
        Lm1b()
    downloads = tmp_path / "cache/downloads/lm1b"
    downloads.mkdir(parents=True)
    layouts.lm1b_archive(downloads)
    assert len(Lm1b().source("train")) == 6
    monkeypatch.setenv("FLM_JAX_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    layouts.lm1b_folder(tmp_path / "data", train=["One .", "Two ."])
    assert list(Lm1b().source("train")) == ["One .", "Two ."]


def test_openwebtext_from_subsets_xz_and_texts(tmp_path):
    corpus = OpenWebText(str(layouts.owt_subsets(tmp_path / "hub")), valid_documents=5)
    ordered = layouts.owt_order()
    assert list(corpus.source("train")) == ordered[:-5]
    assert list(corpus.source("valid")) == ordered[-5:]
    assert corpus.describe()["documents"] == {"train": 7, "valid": 5}
    assert corpus.source("valid")[-1] == corpus.source("valid")[4] == ordered[-1]
    (tmp_path / "xz").mkdir()
    for i in range(3):
        (tmp_path / f"xz/urlsf_subset00-{i}_data.xz").write_bytes(
            layouts.owt_xz([2 * i, 2 * i + 1])
        )
    corpus = OpenWebText(str(tmp_path / "xz"), valid_documents=1)
    assert [*corpus.source("train"), *corpus.source("valid")] == [*map(layouts.page, range(6))]
    (tmp_path / "texts").mkdir()
    for i in range(4):
        (tmp_path / f"texts/{i:07d}.txt").write_text(layouts.page(i).replace("\n\n", "\n\n\n"))
    corpus = OpenWebText(str(tmp_path / "texts"), valid_documents=2)
    assert list(corpus.source("train")) == [layouts.page(0), layouts.page(1)]


def test_openwebtext_is_found_in_the_hub_cache(tmp_path):
    snapshot = tmp_path / "hub-home/hub/datasets--Skylion007--openwebtext/snapshots/abc"
    layouts.owt_subsets(snapshot)
    assert len(OpenWebText(valid_documents=2).source("train")) == 10


def test_openwebtext_is_counted_once(tmp_path, monkeypatch):
    monkeypatch.setenv("FLM_JAX_CACHE", str(layouts.owt_subsets(tmp_path / "hub") / "no/folder"))
    (tmp_path / "hub/no").write_text("a cache that cannot be written")
    read = []
    documents = files.TarTexts.documents
    monkeypatch.setattr(
        files.TarTexts, "documents", lambda part: read.append(part) or documents(part)
    )
    corpus = OpenWebText(str(tmp_path / "hub"), valid_documents=5)
    assert len(corpus.source("train")) == 7 and len(corpus.source("valid")) == 5
    assert len(read) == 2  # the two archives


def test_openwebtext_needs_more_than_its_validation_text(tmp_path):
    corpus = OpenWebText(str(layouts.owt_subsets(tmp_path / "hub")))
    with pytest.raises(UserError, match="12 documents here, too few for 100000 of validation"):
        corpus.source("train")
    with pytest.raises(UserError, match="valid_documents=0 must be at least 1"):
        OpenWebText(valid_documents=0)


def test_openwebtext_packed_and_half_unpacked_side_by_side(tmp_path):
    folder = layouts.owt_subsets(tmp_path / "hub")
    (folder / "urlsf_subset00-1_data.xz").write_bytes(layouts.owt_xz([1]))
    with pytest.raises(UserError, match="would count the same pages twice; set options.path to"):
        OpenWebText(str(folder), valid_documents=1)


def test_text8_pieces_and_split(tmp_path):
    text = layouts.text8()
    (tmp_path / "text8").write_text(text)
    (tmp_path / "zipped").mkdir()
    options = dict(piece=30, characters=(800, 120, 80))
    for path in (tmp_path, tmp_path / "text8", layouts.text8_zip(tmp_path / "zipped")):
        corpus = Text8(str(path), **options)
        assert "".join(corpus.source("train")) == text[: 800 // 30 * 30]
        assert "".join(corpus.source("valid")) == text[800:920]
        assert list(corpus.source("test")) == [text[920:950], text[950:980]]
        assert corpus.source("train")[7] == text[210:240]
        assert len(corpus.source("train")) == 26
    (tmp_path / "text8").write_text(text + "\n")
    assert "".join(Text8(str(tmp_path), **options).source("valid")) == text[800:920]


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("short", r"has 5 characters, not 1,000; .*set options.characters"),
        ("Capitals " + layouts.text8(991), "has the byte 0x43 at 0"),
        (layouts.text8(400) + "é" + layouts.text8(598), "has the byte 0xc3 at 400"),
    ],
)
def test_text8_that_is_something_else(tmp_path, text, sentence):
    (tmp_path / "text8").write_text(text, encoding="utf-8")
    corpus = Text8(str(tmp_path), piece=100, characters=(800, 100, 100))
    with pytest.raises(UserError, match=sentence):
        list(corpus.source("train"))


def test_text8_options(tmp_path):
    for characters in ((1, 2), (800, 100, 5)):
        with pytest.raises(UserError, match="must be three sizes"):
            Text8(str(tmp_path), piece=10, characters=characters)
    with zipfile.ZipFile(tmp_path / "text8.zip", "w") as archive:
        archive.writestr("readme", "no")
    with pytest.raises(UserError, match="holds no file text8"):
        Text8(str(tmp_path))


@pytest.mark.parametrize("kind", ["zip", "folder", "parent"])
def test_wikitext_lines_and_articles(tmp_path, kind):
    path = layouts.wikitext_zip(tmp_path)
    if kind != "zip":
        zipfile.ZipFile(path).extractall(tmp_path / "out")
        path = tmp_path / "out" / ("wikitext-2-raw" if kind == "folder" else "")
    by_line = WikiText2(str(path), document="line")
    texts = layouts.wikitext_texts()
    kept = ["" if not line.strip() else line for line in texts["train"].splitlines(keepends=True)]
    assert list(by_line.source("train")) == kept
    articles = list(WikiText2(str(path)).source("valid"))
    assert len(articles) == 3 and articles[0].startswith(" = Title 3 = \n In 1903 ,")
    text = by_line.detokenize(articles[0])
    assert "ship-yard (at Leith) closed" in text and "1,003 pounds" in text and "@" not in text
    assert text.count("\n") == 5
    assert WikiText2(str(path)).fingerprint("train") != by_line.fingerprint("train")


def test_wikitext_token_files_and_names(tmp_path):
    layouts.wikitext_zip(tmp_path, "wikitext-103", "tokens")
    corpus = WikiText103(str(tmp_path))
    assert len(corpus.source("train")) == 3 and corpus.splits == ("train", "valid", "test")
    with pytest.raises(UserError, match="document='page' must be 'article' or 'line'"):
        WikiText103(str(tmp_path), document="page")
    with pytest.raises(UserError, match="does not hold wiki.train.raw"):
        WikiText2(str(tmp_path))  # the other one's archive
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", "no")
    with pytest.raises(UserError, match=r"other\.zip holds no wiki.train.raw or wiki.train.tok"):
        WikiText2(str(tmp_path / "other.zip"))


def test_a_title_in_the_middle_of_a_paragraph_is_none(tmp_path):
    text = " = Sums = \n \n One plus one : \n = 2 = \n That was it . \n \n = Next = \n \n Text . \n"
    for split in ("train", "valid"):
        (tmp_path / f"wiki.{split}.raw").write_text(text)
    articles = list(WikiText2(str(tmp_path)).source("train"))
    assert [a.split("\n")[0] for a in articles] == [" = Sums = ", " = Next = "]


def test_the_two_wikitexts_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("FLM_JAX_DATA", str(tmp_path))
    zipfile.ZipFile(layouts.wikitext_zip(tmp_path)).extractall(tmp_path)
    assert len(WikiText2().source("train")) == 3
    with pytest.raises(UserError, match="'wikitext103' wants wiki.train.raw"):
        WikiText103()
    (tmp_path / "wiki.train.raw").write_text("whose?")
    (tmp_path / "wiki.valid.raw").write_text("whose?")
    with pytest.raises(UserError, match="'wikitext103' wants wiki.train.raw"):
        WikiText103()


def test_tinystories(tmp_path):
    corpus = TinyStories(str(layouts.tinystories(tmp_path)))
    assert list(corpus.source("train")) == [layouts.story(n) for n in range(20)]
    assert corpus.splits == ("train", "valid") and len(corpus.source("valid")) == 3
    with pytest.raises(UserError, match="has no split 'test'"):
        corpus.source("test")
    shrinking = TinyStories(str(tmp_path)).source("train")
    assert len(shrinking) == 20
    (tmp_path / "TinyStories-train.txt").write_text(layouts.story(0))
    with pytest.raises(UserError, match="train.* became shorter while it was read; start again"):
        shrinking[19]
    (tmp_path / "TinyStories-valid.txt").unlink()
    with pytest.raises(UserError, match=r"cannot read .*valid\.txt: No such file .*; correct the"):
        corpus.fingerprint("valid")
    with pytest.raises(
        UserError, match="does not hold TinyStories-train.txt and TinyStories-valid"
    ):
        TinyStories(str(tmp_path))


def test_ptb_folder_and_archive(tmp_path):
    (tmp_path / "plain").mkdir()
    for path in (layouts.ptb_folder(tmp_path / "plain"), layouts.ptb_archive(tmp_path)):
        corpus = Ptb(str(path))
        assert corpus.splits == ("train", "valid", "test")
        assert (
            corpus.source("test")[0] == "mr. <unk> is chairman of n n.v. the dutch publishing group"
        )
        assert corpus.detokenize(corpus.source("test")[0]).startswith("mr. ? is chairman")
    with pytest.raises(UserError, match="it from the Linguistic Data Consortium"):
        Ptb()


def test_jsonl(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps({"body": f"text {i}"}) + "\n" for i in range(300))
    corpus = PUBLISHED["jsonl"](str(path), json_key="body")
    assert sum(len(corpus.source(split)) for split in corpus.splits) == 300
    with pytest.raises(UserError, match="no text under 'text'; set options.json_key"):
        PUBLISHED["jsonl"](str(path)).source("train")
    (tmp_path / "b.txt").write_text("text")
    with pytest.raises(UserError, match=r"b.txt is none of .jsonl, .json, .ndjson"):
        PUBLISHED["jsonl"](str(tmp_path / "b.txt"))
    with pytest.raises(UserError, match="'jsonl' needs options.path"):
        PUBLISHED["jsonl"]()


def test_detokenisers_are_the_official_ones(tmp_path, shared):
    cases = json.loads((shared / "golden/text/detokenizers.json").read_text())
    plain = [
        c for c in cases if c["input"].strip() == c["input"] and len(c["input"].split("\n")) == 1
    ]
    plain = [c for c in plain if c["input"]]
    assert len(plain) > 30
    archive = layouts.lm1b_archive(tmp_path, train=[c["input"] for c in plain])
    corpus = Lm1b(str(archive))
    got = {text: corpus.detokenize(text) for text in corpus.source("train")}
    for case in plain:
        assert got[case["input"]] == case["lm1b"]


def test_random_access_pickles_and_slices(tmp_path):
    corpus = OpenWebText(str(layouts.owt_subsets(tmp_path / "hub")), valid_documents=5)
    source, expected = corpus.source("train"), layouts.owt_order()[:-5]
    for index in (3, 4, 6, 0, 5, 5, -1, 1):
        assert source[index] == expected[index], index
    assert source[2:6:2] == expected[2:6:2]
    assert pickle.loads(pickle.dumps(source))[6] == expected[6]
    assert pickle.loads(pickle.dumps(corpus)).source("train")[1] == expected[1]
    for index in (7, -8):
        with pytest.raises(IndexError):
            source[index]


def test_forward_reading_opens_each_file_once(tmp_path, monkeypatch):
    corpus = Lm1b(str(layouts.lm1b_archive(tmp_path)))
    source = corpus.source("train")
    assert len(source) == 6
    starts = []
    documents = files.TarLines.documents
    monkeypatch.setattr(
        files.TarLines, "documents", lambda part: starts.append(part) or documents(part)
    )
    assert [source[i] for i in range(6)] == list(source)
    assert len(starts) == 2  # by index, and by the loop
    assert source[2] == list(source)[2] and len(starts) == 4


def test_counts_are_kept_and_noticed_when_files_change(tmp_path, monkeypatch):
    path = layouts.lm1b_archive(tmp_path)
    assert len(Lm1b(str(path)).source("train")) == 6
    kept = list((tmp_path / "cache/counts").glob("*.json"))
    assert len(kept) == 1
    monkeypatch.setattr(files.TarLines, "documents", lambda part: 1 / 0)
    assert len(Lm1b(str(path)).source("train")) == 6  # not read again
    monkeypatch.undo()
    monkeypatch.setenv("FLM_JAX_CACHE", str(tmp_path / "cache"))
    before = Lm1b(str(path)).fingerprint("train")
    layouts.lm1b_archive(tmp_path, train=["A .", "B ."])
    assert Lm1b(str(path)).fingerprint("train") != before
    assert len(Lm1b(str(path)).source("train")) == 2


def truncated(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_archives_that_are_cut_off(tmp_path):
    archive = layouts.lm1b_archive(tmp_path, train=layouts.SENTENCES * 200)
    truncated(archive)
    with pytest.raises(UserError, match="is damaged or not complete .*download or copy it again"):
        list(Lm1b(str(archive)).source("train"))
    layouts.owt_subsets(tmp_path / "hub")
    path = tmp_path / "hub/subsets/urlsf_subset01.tar"
    with tarfile.open(path) as archive:
        second = archive.getmembers()[1].offset
    path.write_bytes(path.read_bytes()[:second])  # between two files: nothing is cut in half
    with pytest.raises(UserError, match="urlsf_subset01.tar is damaged or not complete"):
        OpenWebText(str(tmp_path / "hub"), valid_documents=2).source("train")
    (tmp_path / "a.xz").write_bytes(b"not xz at all")
    with pytest.raises(UserError, match="a.xz is damaged or not complete"):
        OpenWebText(str(tmp_path / "a.xz"), valid_documents=2).source("train")
    truncated(layouts.wikitext_zip(tmp_path))
    with pytest.raises(UserError, match="wikitext-2-raw-v1.zip is damaged or not complete"):
        WikiText2(str(tmp_path / "wikitext-2-raw-v1.zip"))


def test_a_flipped_byte_in_a_compressed_archive(tmp_path):
    path = tmp_path / "urlsf_subset00-1_data.xz"
    data = bytearray(layouts.owt_xz(range(300)))
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="is damaged or not complete"):
        OpenWebText(str(path), valid_documents=2).source("train")


def test_shards_that_are_there_twice(tmp_path):
    shard = (
        layouts.lm1b_folder(tmp_path) / layouts.TRAIN.partition("/")[2] / "news.en-00001-of-00100"
    )
    twice = "are the same text, which would count twice; remove one"
    for copy, content in (
        ("news.en-00001-of-00100 (1)", shard.read_bytes()),
        ("news.en-00001-of-00100.gz", gzip.compress(shard.read_bytes())),
    ):
        (shard.parent / copy).write_bytes(content)
        with pytest.raises(UserError, match=twice):
            Lm1b(str(tmp_path))
        (shard.parent / copy).unlink()
    assert len(Lm1b(str(tmp_path)).source("train")) == 6

    path = layouts.owt_subsets(tmp_path / "hub") / "subsets/urlsf_subset00.tar"
    copy = path.with_name("urlsf_subset00 (1).tar")
    copy.write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=twice):
        OpenWebText(str(tmp_path / "hub"), valid_documents=2)
    copy.unlink()
    with tarfile.open(path) as archive:  # unpacked, and the archive left there
        archive.extractall(tmp_path / "hub", filter="data")
    with pytest.raises(UserError, match="subset00.tar and .*_data.xz, which comes out of such"):
        OpenWebText(str(tmp_path / "hub"), valid_documents=2)


def test_text_that_is_not_utf8(tmp_path):
    content = layouts.lm1b_files()
    name = f"{layouts.TRAIN}/news.en-00001-of-00100"
    content[name] = content[name].replace(b"Tuesday", b"Tues\xff")
    path = tmp_path / "corpus.tar.gz"
    path.write_bytes(layouts.tar_bytes(content, "w:gz"))
    with pytest.raises(UserError, match="news.en-00001-of-00100: line 1 has the byte 0xff"):
        list(Lm1b(str(path)).source("train"))
    (tmp_path / "TinyStories-train.txt").write_bytes(b"good<|endoftext|>b\xe4d")
    (tmp_path / "TinyStories-valid.txt").write_bytes(b"good")
    with pytest.raises(UserError, match="TinyStories-train.txt is not UTF-8: document 2 has"):
        list(TinyStories(str(tmp_path)).source("train"))


def test_other_archives_and_missing_paths(tmp_path):
    path = tmp_path / "other.tar.gz"
    path.write_bytes(layouts.tar_bytes({"a.txt": b"text"}, "w:gz"))
    with pytest.raises(UserError, match="other.tar.gz holds no file whose name matches training"):
        list(Lm1b(str(path)).source("train"))
    path = tmp_path / "other.tar.xz"
    path.write_bytes(lzma.compress(layouts.tar_bytes({"a.csv": b"text"}, "w")))
    with pytest.raises(UserError, match="holds no .txt file and no .xz archive"):
        OpenWebText(str(path), valid_documents=1).source("train")
    for name, corpus in PUBLISHED.items():
        if name in ("tfds", "jsonl"):
            continue
        with pytest.raises(UserError, match=f"there is no file or folder .*'{name}', which wants"):
            corpus(str(tmp_path / "nothing"))


def test_odd_documents(tmp_path):
    long = "word " * 2_000_000
    (tmp_path / "TinyStories-train.txt").write_text(f"<|endoftext|>a\0b<|endoftext|>{long}\n")
    (tmp_path / "TinyStories-valid.txt").write_text("\n<|endoftext|>\n")
    corpus = TinyStories(str(tmp_path))
    assert list(corpus.source("train")) == ["a\0b", long.strip()]
    assert list(corpus.source("valid")) == [] and len(corpus.source("valid")) == 0


def test_lines_of_100_megabytes_are_refused_in_little_memory(tmp_path):
    line = b"a" * 100_000_000
    content = {**layouts.lm1b_files(), f"{layouts.TRAIN}/news.en-00003-of-00100": line}
    (tmp_path / "corpus.tar").write_bytes(layouts.tar_bytes(content, "w"))
    (tmp_path / "TinyStories-train.txt").write_bytes(b"one<|endoftext|>" + line)
    (tmp_path / "TinyStories-valid.txt").write_bytes(b"one")
    for split in ("train", "valid"):
        (tmp_path / f"wiki.{split}.raw").write_bytes(b" = A = \n" + line)
    pages = layouts.tar_bytes({"1.txt": b"one", "2.txt": line}, "w")
    (tmp_path / "urlsf_subset00.tar").write_bytes(pages)
    del line, pages, content
    for corpus, where in [
        (Lm1b(str(tmp_path / "corpus.tar")), "news.en-00003-of-00100: line 1"),
        (TinyStories(str(tmp_path)), "document 2"),
        (WikiText2(str(tmp_path)), "it: line 2"),
        (OpenWebText(str(tmp_path / "urlsf_subset00.tar"), valid_documents=1), "2.txt"),
    ]:
        tracemalloc.start()
        with pytest.raises(UserError, match=f"{where} has more than 12,000,000 bytes, too many"):
            list(corpus.source("train"))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 60e6, (corpus.name, peak)


def test_a_mark_on_the_border_of_two_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "_CHUNK", 7)
    (tmp_path / "a.txt").write_text("one<|endoftext|>two <|endof three<|endoftext|>four")
    part = files.Separated(tmp_path / "a.txt", "<|endoftext|>")
    assert list(part.documents()) == ["one", "two <|endof three", "four"]


def test_hashes_of_large_files_read_little_but_notice_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "_HASHED_FULLY", 10)
    monkeypatch.setattr(streams, "_SAMPLE", 4)
    for name in ("a.bin", "a.gz"):
        path = tmp_path / name
        path.write_bytes(bytes(1000))
        before = streams.file_hash(path)
        assert streams.file_hash(path) == before
        path.write_bytes(bytes(996) + b"wxyz")
        assert streams.file_hash(path) != before
        path.write_bytes(bytes(1001))
        assert streams.file_hash(path) != before
    copy = tmp_path / "b.bin"
    copy.write_bytes(bytes(1001))
    os.utime(copy, (1, 1))  # a copy of another day is a copy
    with pytest.raises(UserError, match="are the same text"):
        streams.refuse_copies([tmp_path / "a.bin", copy])
