"""`flm demo`: what it writes, serves and refuses."""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import commands
import processes
import pytest
import untrained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    return untrained.of_loss(place, "flow_matching", "euler", {"given": "uniform"})


def test_a_folder_for_a_static_host(run, tmp_path, capsys):
    words = (
        f"--checkpoint={run}",
        f"--checkpoint={run}",
        f"--output={tmp_path / 'page'}",
        "--noserve",
    )
    assert not commands.call("demo", *words)
    assert "python -m http.server" in capsys.readouterr().out
    page = tmp_path / "page"
    assert json.loads((page / "models.json").read_text()) == ["model1", "model2"]
    model = json.loads((page / "model1" / "model.json").read_text())
    assert (model["name"], model["kind"]) == ("flow_matching", "denoiser")
    assert (model["given"], model["length"]) == (True, 12)
    for path in page.rglob("*"):  # a static host may run as another user
        assert path.stat().st_mode & 0o044 == 0o044, path
    pages = [p.read_text() for p in page.iterdir() if p.suffix in (".html", ".js", ".css")]
    assert not any(str(run) in text for text in pages)
    linked = (word for text in pages for word in text.split('"') if word.startswith("http"))
    assert set(linked) <= {"http://www.w3.org/2000/svg"}
    assert commands.call("demo", *words) == 2
    assert f"{page} exists already" in capsys.readouterr().err


def test_it_is_served_until_ctrl_c(run):
    words = [sys.executable, "-m", "flm_jax", "demo", f"--checkpoint={run}", "--noopen"]
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # Tests that run in the background ignore Ctrl-C, and so would their children.
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(words, env=processes.environment(1), **options) as process:
        address = process.stdout.readline().split()[0]
        for name, kind in (("", "text/html"), ("page.js", "text/javascript")):
            with urllib.request.urlopen(address + name, timeout=60) as answer:
                assert answer.headers.get_content_type() == kind
        assert address.startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        ended = process.poll()
        process.kill()
        assert ended == 0, process.stderr.read()


def refused(capsys, *words):
    assert commands.call("demo", *words) == 2
    return capsys.readouterr().err


def test_what_cannot_be(run, tmp_path, capsys):
    found = refused(capsys, "--checkpoint=a,b,c", "--checkpoint=d")
    assert "names 4 models, but the page shows at most 3" in found
    found = refused(capsys, f"--checkpoint={run}", "--noserve")
    assert "--noserve needs --output=FOLDER" in found
    assert "no file or folder" in refused(capsys, "--checkpoint=nothing")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    words = f"--checkpoint={run}", f"--output={tmp_path / 'taken'}"
    assert "exists already" in refused(capsys, *words)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        found = refused(capsys, f"--checkpoint={run}", f"--port={port}")
    assert f"--port={port} cannot be used (Address already in use)" in found


@pytest.mark.parametrize(
    "loss, sampler, sentence",
    [
        ("masked_diffusion", "ancestral_masked", "it has no jump to export"),
        ("uniform_diffusion", "ancestral_uniform", "it has no jump to export"),
    ],
)
def test_a_model_that_the_page_cannot_run(tmp_path, capsys, loss, sampler, sentence):
    run = untrained.of_loss(tmp_path, loss, sampler)
    words = f"--checkpoint={run}", f"--output={tmp_path / 'page'}", "--noserve"
    assert sentence in refused(capsys, *words)
    assert not (tmp_path / "page").exists()
