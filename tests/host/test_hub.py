"""hf://USER/REPO against a stand-in for the hub: what arrives, what goes wrong, in a sentence."""

import sys

import fake_hub
import pytest

from flm_jax.errors import UserError
from flm_jax.host import hub

pytest.importorskip("huggingface_hub", reason="the extra [hub]")

SIZE = 300_000


@pytest.fixture
def served(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("# a card")
    (folder / "tokenizer/pieces.json").write_text('["a"]')
    (folder / "model.safetensors").write_bytes(bytes(range(250)) * (SIZE // 250))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.4)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 5_000)  # what is kept
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    with fake_hub.serving(folder) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


def whole(path, served):
    names = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}
    assert names == served.files.keys() - {"README.md"}  # nobody needs it to write texts
    return all((path / name).read_bytes() == served.files[name] for name in names)


def test_a_model_arrives_once_and_stays(served, monkeypatch):
    path = hub.fetch("hf://someone/names")
    assert whole(path, served)
    served.asked.clear()
    assert hub.fetch("hf://someone/names@v1") == path
    assert not [line for line in served.asked if "cdn" in line or "resolve" in line]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    served.asked.clear()
    assert hub.fetch("hf://someone/names") == path and not served.asked


def test_what_breaks_off_goes_on_where_it_was(served):
    served.truncated = SIZE // 3
    assert whole(hub.fetch("hf://someone/names"), served)
    assert served.ranges[0] is None and None not in served.ranges[1:]
    assert len(served.ranges) == 3


def test_what_says_nothing_any_more_is_asked_again(served):
    served.stalls = 2
    assert whole(hub.fetch("hf://someone/names"), served)
    assert len(served.ranges) == 3


def test_after_a_download_that_failed_the_next_call_gets_the_rest(served, monkeypatch):
    from huggingface_hub import file_download

    original, served.truncated = file_download.http_get, SIZE // 3

    def impatient(*args, **options):  # the library goes on as long as anything arrives
        return original(*args, **options | {"_nb_retries": -1})

    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", impatient)
        patch.setattr(file_download.constants, "DOWNLOAD_CHUNK_SIZE", SIZE)
        with pytest.raises(UserError, match="cannot download someone/names .*try again later"):
            hub.fetch("hf://someone/names")
    served.asked.clear()
    assert whole(hub.fetch("hf://someone/names"), served)
    assert not [line for line in served.asked if line.startswith("GET") and "config" in line]


def test_a_private_model_needs_its_token(served, monkeypatch):
    served.token = "hf_right"
    sentence = "there is no model someone/names at .*, or it is private; .* HF_TOKEN"
    with pytest.raises(UserError, match=sentence):
        hub.fetch("hf://someone/names")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match=sentence):
        hub.fetch("hf://someone/names")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert whole(hub.fetch("hf://someone/names"), served)


WRONG = {
    "hf://someone/other": "there is no model someone/other at http://127",
    "hf://someone/names@no": "someone/names has no revision no; give a branch",
    "hf://names": "hf://names is not the address of a model; write hf://USER/REPO",
    "hf://someone/names/folder": "is not the address of a model",
    "hf://someone/names@": "is not the address of a model",
    "hf://some..one/names": "some..one/names is no name of a model",
}


@pytest.mark.parametrize("address", WRONG)
def test_what_is_not_there(served, address):
    with pytest.raises(UserError, match=WRONG[address]) as error:
        hub.fetch(address)
    assert len(str(error.value).splitlines()) == 1


def test_gates_outages_and_cables(served, monkeypatch):
    def sentence():
        with pytest.raises(UserError) as error:
            hub.fetch("hf://someone/names")
        text = str(error.value)
        assert len(text.splitlines()) == 1
        return text

    served.gated = True
    assert "someone/names is gated; accept its terms at http://127" in sentence()
    served.gated = False
    for status, words in ((403, "refuses someone/names (403)"), (503, "answered 503 for someone/")):
        served.broken = status
        assert words in sentence()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "cannot reach http://127.0.0.1:9 for someone/names (ConnectError" in sentence()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "not in the cache, or not all of it, and HF_HUB_OFFLINE is set" in sentence()


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"hf://a/b needs .* pip install 'flm_jax\[hub\]'"):
        hub.fetch("hf://a/b")
