"""Corpora as Parquet and Arrow files, through `datasets` and TFDS; skipped where not installed."""

import json
import pickle
from unittest.mock import Mock

import published_layouts as layouts
import pytest

from flm_jax.data.published import columns
from flm_jax.data.published.huggingface import HuggingFace
from flm_jax.data.published.lm1b import Lm1b
from flm_jax.data.published.openwebtext import OpenWebText
from flm_jax.data.published.tfds import Split, Tfds
from flm_jax.data.published.tinystories import TinyStories
from flm_jax.data.published.wikitext import WikiText2, WikiText103
from flm_jax.errors import UserError

PAGES = [layouts.page(n) for n in range(12)]


@pytest.fixture(autouse=True)
def private_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("FLM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-home"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    for name in ("FLM_JAX_DATA", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def arrow():
    return pytest.importorskip("pyarrow", reason="the extra 'parquet' is not installed")


def write(arrow, path, texts, kind="stream", column="text"):
    """One Parquet file or Arrow file (a stream or a file, by `kind`) with small row groups."""
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = arrow.table({"id": list(range(len(texts))), column: texts})
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=2)
        return
    new = arrow.ipc.new_stream if kind == "stream" else arrow.ipc.new_file
    with arrow.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def owt(path=""):
    return OpenWebText(str(path), valid_documents=5)


@pytest.mark.parametrize(
    "names",
    [
        ("plain_text/train-00000-of-00002.parquet", "plain_text/train-00001-of-00002.parquet"),
        ("train-00000-of-00002-1a2b3c.parquet", "train-00001-of-00002-4d5e6f.parquet"),
        ("default/train/0000.parquet", "default/train/0001.parquet"),
        ("openwebtext-train-00000-of-00002.arrow", "openwebtext-train-00001-of-00002.arrow"),
        ("data-00000-of-00002.arrow", "data-00001-of-00002.arrow"),
        ("part_a.parquet", "part_b.parquet"),
    ],
)
def test_openwebtext_in_the_hubs_layouts(arrow, tmp_path, names):
    write(arrow, tmp_path / names[0], PAGES[:7])
    write(arrow, tmp_path / names[1], PAGES[7:])
    corpus = owt(tmp_path)
    assert list(corpus.source("train")) == PAGES[:7]
    assert list(corpus.source("valid")) == PAGES[7:]
    assert corpus.source("valid")[3] == PAGES[10]
    assert pickle.loads(pickle.dumps(corpus)).source("train")[6] == PAGES[6]
    assert not (tmp_path / "cache/counts").exists()  # the files state their counts


def test_arrow_files_of_the_other_kind(arrow, tmp_path):
    write(arrow, tmp_path / "data-00000-of-00001.arrow", PAGES, kind="file")
    assert list(owt(tmp_path).source("train")) == PAGES[:7]


def test_caches_of_the_hub_and_of_the_library(arrow, tmp_path):
    made = tmp_path / "hub-home/datasets/openwebtext/plain_text/1.0.0/abc"
    write(arrow, made / "openwebtext-train.arrow", PAGES)
    write(arrow, made / "cache-0123456789abcdef.arrow", ["not this"])
    assert list(owt().source("train")) == PAGES[:7]
    snapshot = tmp_path / "hub-home/hub/datasets--Skylion007--openwebtext/snapshots/def"
    write(arrow, snapshot / "plain_text/train-00000-of-00001.parquet", PAGES[::-1])
    assert list(owt().source("train")) == PAGES[::-1][:7]


def test_missing_and_double_files(arrow, tmp_path):
    write(arrow, tmp_path / "train-00001-of-00003.parquet", PAGES)
    with pytest.raises(
        UserError, match="lacks 2 of the 3 files of the split 'train', the first is"
    ):
        owt(tmp_path)
    write(arrow, tmp_path / "train-00001-of-00003-abc.parquet", PAGES)
    with pytest.raises(UserError, match="are the same part of the split 'train'"):
        owt(tmp_path)


@pytest.mark.parametrize("name", ["train-00000-of-00001.parquet", "x-train.arrow"])
def test_damaged_files_and_other_columns(arrow, tmp_path, name):
    path = tmp_path / name
    write(arrow, path, PAGES, column="content")
    with pytest.raises(UserError, match="has no column 'text'; set options.text_key to .* content"):
        list(owt(tmp_path).source("train"))
    assert list(HuggingFace(str(tmp_path), text_key="content").source("train")) == PAGES
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="is damaged or not complete .*copy it again"):
        list(HuggingFace(str(tmp_path), text_key="content").source("train"))


def test_empty_cells_are_empty_documents(arrow, tmp_path):
    write(arrow, tmp_path / "train.parquet", ["a", None, "", "b"])
    assert list(HuggingFace(str(tmp_path)).source("train")) == ["a", "", "", "b"]


def test_tinystories_and_wikitext(arrow, tmp_path):
    stories = [layouts.story(n) for n in range(4)]
    for split, texts in (("train", stories), ("validation", stories[:1])):
        write(arrow, tmp_path / f"ts/data/{split}-00000-of-00001-0a.parquet", texts)
    corpus = TinyStories(str(tmp_path / "ts"))
    assert list(corpus.source("train")) == stories and len(corpus.source("valid")) == 1
    raw = layouts.wikitext_texts()
    for size in ("2", "103"):
        for split, name in (("train", "train"), ("valid", "validation"), ("test", "test")):
            rows = raw[split].splitlines(keepends=True)
            rows = ["" if not row.strip() else row for row in rows] + [f" size {size} \n"]
            folder = tmp_path / "hub-home/hub/datasets--Salesforce--wikitext/snapshots/a"
            write(arrow, folder / f"wikitext-{size}-raw-v1/{name}-00000-of-00001.parquet", rows)
    other = tmp_path / "other/snapshot"
    write(arrow, other / "wikitext-103-raw-v1/train-00000-of-00001.parquet", ["text"])
    with pytest.raises(UserError, match="does not hold wiki.train.raw"):
        WikiText2(str(other))  # the larger one is not taken for it
    zipped = WikiText2(str(layouts.wikitext_zip(tmp_path)))
    for kind, size in ((WikiText2, "2"), (WikiText103, "103")):
        articles = list(kind().source("train"))
        assert articles[:-1] == list(zipped.source("train"))[:-1]
        assert articles[-1].endswith(f" size {size} \n")


def test_datasets_saved_to_disk_and_other_files(tmp_path):
    library = pytest.importorskip("datasets", reason="the extra 'huggingface' is not installed")
    table = library.Dataset.from_dict({"text": PAGES})
    library.DatasetDict(train=table, validation=table.select([3])).save_to_disk(tmp_path / "saved")
    corpus = HuggingFace(str(tmp_path / "saved"))
    assert list(corpus.source("train")) == PAGES
    assert list(corpus.source("valid")) == [PAGES[3]] and corpus.splits == ("train", "valid")
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv/train.csv").write_text("text,label\nhello,1\nyou,2\n")
    corpus = HuggingFace(str(tmp_path / "csv"))
    assert list(corpus.source("train")) == ["hello", "you"]
    assert corpus.fingerprint("train") == HuggingFace(str(tmp_path / "csv")).fingerprint("train")
    with pytest.raises(
        UserError, match="has no column 'body'; set options.text_key to one .*label"
    ):
        HuggingFace(str(tmp_path / "csv"), text_key="body")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="the library datasets cannot read .*empty"):
        HuggingFace(str(tmp_path / "empty"))


def test_what_tfds_prepared(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets", reason="the extra 'tfds' is not installed")

    class Sentences(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "lm1b"
        VERSION = tfds.core.Version("1.1.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(6), "test": self._generate_examples(3)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"text": layouts.SENTENCES[i]}

    tfds.disable_progress_bar()
    Sentences(data_dir=tmp_path / "tfds", file_format="array_record").download_and_prepare()
    for corpus in (Lm1b(), Lm1b(str(tmp_path / "tfds/lm1b/1.1.0")), Tfds("lm1b")):
        assert sorted(corpus.source("train")) == sorted(layouts.SENTENCES)
        assert sorted(corpus.source("test")) == sorted(layouts.SENTENCES[:3])
        assert corpus.source("train")[4] == list(corpus.source("train"))[4]
    info = tmp_path / "tfds/other/1.0.0/dataset_info.json"
    info.parent.mkdir(parents=True)
    info.write_text(json.dumps({"name": "other"}))
    (info.parent / "features.json").write_text("{}")
    assert len(Lm1b(str(tmp_path / "tfds")).source("train")) == 6  # of the right name only
    assert list(Lm1b().source("valid")) == list(Lm1b().source("test"))
    assert Tfds("lm1b").name == "tfds-lm1b"
    with pytest.raises(UserError, match="has no feature 'body'; set options.text_key .* text"):
        list(Tfds("lm1b", text_key="body").source("train"))
    with pytest.raises(UserError, match="no prepared data set 'wiki40b/en' in .*download_and_prep"):
        Tfds("wiki40b/en")


def test_missing_libraries_are_named(tmp_path, monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(columns.importlib, "import_module", absent)
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"needs the library pyarrow.*flm_jax\[parquet\]"):
        owt(tmp_path).source("train")
    (tmp_path / "csv").mkdir()
    with pytest.raises(UserError, match=r"needs the library datasets.*flm_jax\[huggingface\]"):
        HuggingFace(str(tmp_path / "csv"))
    with pytest.raises(UserError, match=r"needs the library tensorflow_datasets.*\[tfds\]"):
        Tfds("lm1b")
    (tmp_path / "json").mkdir()
    (tmp_path / "json/dataset_info.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="does not hold .*prepared by TFDS"):
        Lm1b(str(tmp_path / "json"))


def test_cells_that_are_no_text():
    with pytest.raises(UserError, match="a.parquet has 3 in column 'body', which is not text; set"):
        list(columns.cells(["a", None, 3], "a.parquet", "body"))


def test_what_tfds_cannot_read(monkeypatch, tmp_path):
    broken = Mock(builder_from_directory=Mock(side_effect=NotImplementedError("tfrecord")))
    monkeypatch.setattr(columns, "library", lambda *_: broken)
    sentence = r"without TensorFlow \(NotImplementedError: tfrecord\); prepare it with file_format="
    with pytest.raises(UserError, match=sentence):
        Split(tmp_path, "train", "text")._source()
