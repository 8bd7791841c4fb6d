"""The page's JavaScript in node, asked from Python."""

import json
import pathlib
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest

from flm_jax.demo import folder
from flm_jax.inference import FlowModel

HERE = pathlib.Path(__file__).parent


def ask(where: pathlib.Path, tasks: list[dict[str, Any]], model: FlowModel | None = None) -> Any:
    """The answers of run.mjs, with the model as `flm demo` writes it into the folder ``where``."""
    node = shutil.which("node") or pytest.skip("there is no node (apt install nodejs)")
    page = where / "page"
    if not page.exists():
        page.mkdir(parents=True)
        for file in folder.page():
            (page / file.name).write_bytes(file.read_bytes())
        (page / "package.json").write_text('{"type": "module"}')  # node reads .js as modules, too
        shutil.copy(HERE / "run.mjs", page)
    words = [node, str(page / "run.mjs")]
    if model is not None:
        shutil.rmtree(where / "model", ignore_errors=True)
        folder.write_model(model, where / "model")
        words.append(str(where / "model"))
    text = json.dumps(tasks, default=lambda value: np.asarray(value).tolist())
    done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
