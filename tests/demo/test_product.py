"""product.wasm is what product.wat says; what it computes is in test_network.py."""

import pathlib
import shutil
import subprocess

import pytest

WEB = pathlib.Path(__file__).resolve().parents[2] / "flm_jax" / "demo" / "web"


def test_the_program_is_that_of_its_source(tmp_path):
    wat2wasm = shutil.which("wat2wasm") or pytest.skip("there is no wat2wasm (apt install wabt)")
    made = tmp_path / "product.wasm"
    subprocess.run([wat2wasm, WEB / "product.wat", "-o", made], check=True, timeout=60)
    assert made.read_bytes() == (WEB / "product.wasm").read_bytes()
