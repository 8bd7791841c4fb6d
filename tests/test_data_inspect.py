"""The inspection tool: what it prints for a config, and its exit code for mistakes."""

import os
import subprocess
import sys

CONFIG = """
def get_config():
    return {
        "data": {"name": "text_files", "length": 8, "options": {"path": PATH, "document": "line"}},
        "tokenizer": {"name": "characters"},
    }
"""


def inspect(folder, *flags):
    (folder / "text.txt").write_text("".join(f"document {i}\n" for i in range(300)))
    (folder / "c.py").write_text(CONFIG.replace("PATH", repr(str(folder / "text.txt"))))
    return subprocess.run(
        [sys.executable, "-m", "flm_jax.data.inspect", f"--config={folder / 'c.py'}", *flags],
        env={**os.environ, "FLM_JAX_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
    )


def test_prints_sizes_and_rows(tmp_path):
    done = inspect(tmp_path, "--rows=2")
    assert done.returncode == 0, done.stderr
    for words in ("data set   text_files", "train      2", "tokenizer  characters, 23 ids"):
        assert words in done.stdout
    assert done.stdout.splitlines()[-2:] == ["row 0 of train: docume", "row 1 of train: nt 0 | d"]


def test_mistakes_end_with_a_sentence_and_code_2(tmp_path):
    for flag, sentence in (
        ("--split=dev", "error: no split 'dev'; choose one of train, valid, test"),
        ("--config.data.length=9999999", "error: the 'train' split of 'text_files' has 2"),
    ):
        done = inspect(tmp_path, flag)
        assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
