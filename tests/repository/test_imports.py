"""Who may import whom: the table of the architecture, enforced on the syntax tree of every file."""

import ast
import collections.abc
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = sorted([*ROOT.glob("flm_jax/**/*.py"), *ROOT.glob("configs/**/*.py")])

# A room is a module or package directly below flm_jax. These are plain Python and open to all:
OPEN = (
    *("contracts", "errors", "knobs", "options", "registry"),
    *("sampling", "shipped", "target"),
)
# Rooms in layers: each may import the rooms of the layers below it that its row names.
LAYER_1 = {"flow", "host", "config", "losses", "samplers", "models", "tokenizers"}
LAYER_2 = {"data", "checkpoint", "interop", "evals", "report"}
LAYER_3 = {"experiment", "inference"}
MAY_IMPORT = {
    **{room: set() for room in OPEN},
    "flow": set(),
    "host": set(),
    "config": {"host"},
    "losses": {"flow"},
    "samplers": {"flow"},
    "models": {"flow"},
    "tokenizers": {"host"},
    "data": {"host", "config", "tokenizers"},
    "checkpoint": LAYER_1,
    "interop": LAYER_1,
    "evals": LAYER_1 | {"data"},
    "report": LAYER_1 | {"evals"},
    "experiment": LAYER_1 | LAYER_2,
    "inference": LAYER_1 | LAYER_2 | {"experiment"},
    "training": LAYER_1 | LAYER_2 | LAYER_3,
    # What leaves the house reads trained models; nothing but the command line knows it.
    "export": LAYER_1 | LAYER_2 | LAYER_3,
    "demo": LAYER_1 | LAYER_2 | LAYER_3 | {"export"},
    "lab": LAYER_1 | LAYER_2 | LAYER_3 | {"training", "configs"},
    "cli": LAYER_1 | LAYER_2 | LAYER_3 | {"training", "lab", "export", "demo"},
    "main": {"cli"},
    "__main__": {"cli"},
    "flm_jax": {"inference"},  # the public names in flm_jax/__init__.py, lazily
    "configs": {"configs", "config"},
}

# Library to the rooms that may import it, anywhere in the file.
ONLY_IN = {
    "flax": {"models"},
    "orbax": {"checkpoint"},
    "grain": {"data"},
    "tensorflow_datasets": {"data"},
    "ml_collections": {"config", "main", "configs"},
    "huggingface_hub": {"host"},
    "onnx": {"export"},
    "onnxruntime": {"export"},  # an example that is copied into exported folders
    "torch": set(),
    "tensorflow": set(),
    "clu": set(),
}
EXCEPTIONS = {("training", "flax.struct")}

# Library to the rooms that may import it only inside functions.
LAZY = {
    "orbax": {"checkpoint"},
    "grain": {"data"},
    "tensorflow_datasets": {"data"},
    "huggingface_hub": {"host"},
    "onnx": {"export"},
    "jax": {"data", "tokenizers"},
    "flm_jax": {"flm_jax"},
}


def room_of(path: str) -> str:
    """The room of a file, given its path from the root: flm_jax/flow/clock.py -> flow."""
    parts = pathlib.PurePosixPath(path).with_suffix("").parts
    if parts[0] == "configs":
        return "configs"
    return "flm_jax" if parts[1] == "__init__" else parts[1]


def imports(path: str, source: str) -> collections.abc.Iterator[tuple[str, int, bool]]:
    """Yields (dotted name, line, whether it runs when the module is imported).

    ``from a import b`` yields "a.b". Imports inside functions count, and so do import_module
    and __import__ with a literal name.
    """
    package = pathlib.PurePosixPath(path).with_suffix("").parts[:-1]

    def walk(node: ast.AST, at_top: bool):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            at_top = False
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            at_top = False
        elif isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", node.lineno, at_top) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            if ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__"):
                yield str(node.args[0].value), node.lineno, at_top
        for child in ast.iter_child_nodes(node):
            yield from walk(child, at_top)

    return walk(ast.parse(source), True)


def violations(path: str, source: str) -> list[str]:
    """What a file imports against the rules, one sentence each."""
    room = room_of(path)
    if room not in MAY_IMPORT:
        return [f"{path}: room {room!r} is not in the table of test_imports.py; add it"]
    found = []
    for name, line, at_top in imports(path, source):
        library, _, rest = name.partition(".")
        if library == "configs":
            found.append(f"{path}:{line}: {name} may be a user's; ours is flm_jax.configs")
        if library == "flm_jax":
            target = rest.partition(".")[0]
            if target not in (room, *OPEN, "__version__") and target not in MAY_IMPORT[room]:
                found.append(f"{path}:{line}: {room} may not import {name}")
        rooms = ONLY_IN.get(library)
        if rooms is not None and room not in rooms:
            if not any(room == r and f"{name}.".startswith(f"{n}.") for r, n in EXCEPTIONS):
                found.append(f"{path}:{line}: {name} is imported only in {sorted(rooms)}")
        if at_top and room in LAZY.get(library, ()):
            found.append(f"{path}:{line}: {room} imports {name} only inside functions")
    return found


def test_there_are_files_to_check():
    assert len(FILES) > 50


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_imports_follow_the_architecture(file):
    assert not violations(file.relative_to(ROOT).as_posix(), file.read_text())


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("flm_jax/flow/clock.py", "from flm_jax.config import ClockConfig"),
        ("flm_jax/flow/clock.py", "def f():\n    from flm_jax import config"),
        ("flm_jax/flow/clock.py", "import flm_jax.losses.psd as psd"),
        ("flm_jax/flow/clock.py", "from ..models import dit"),
        ("flm_jax/flow/clock.py", "from .. import models"),
        ("flm_jax/flow/clock.py", "import importlib\nimportlib.import_module('flm_jax.data')"),
        ("flm_jax/flow/clock.py", "import flax"),
        ("flm_jax/flow/clock.py", "try:\n    import flax.linen as nn\nexcept ImportError:\n    1"),
        ("flm_jax/errors.py", "from flm_jax import config"),
        ("flm_jax/host/files.py", "from flm_jax import models"),
        ("flm_jax/losses/psd.py", "from flm_jax.models import dit"),
        ("flm_jax/samplers/euler.py", "from flm_jax.losses import psd"),
        ("flm_jax/models/dit.py", "from flm_jax import losses"),
        ("flm_jax/data/base.py", "import jax.numpy as jnp"),
        ("flm_jax/data/base.py", "import grain"),
        ("flm_jax/data/base.py", "if True:\n    from grain import MapDataset"),
        ("flm_jax/data/base.py", "from flm_jax import flow"),
        ("flm_jax/tokenizers/base.py", "from jax import random"),
        ("flm_jax/checkpoint.py", "import orbax.checkpoint as ocp"),
        ("flm_jax/checkpoint.py", "from flm_jax import training"),
        ("flm_jax/training/loop.py", "def f():\n    import orbax.checkpoint"),
        ("flm_jax/training/loop.py", "from ml_collections import ConfigDict"),
        ("flm_jax/training/loop.py", "from flm_jax import cli"),
        ("flm_jax/training/loop.py", "from flm_jax import main"),
        ("flm_jax/training/step.py", "from flax import linen"),
        ("flm_jax/training/step.py", "import flax"),
        ("flm_jax/training/step.py", "from flm_jax.lab import plan"),
        ("flm_jax/export/folder.py", "import onnx"),
        ("flm_jax/export/folder.py", "from flm_jax import training"),
        ("flm_jax/inference/model.py", "def f():\n    from flm_jax import export"),
        ("flm_jax/inference/model.py", "def f():\n    import onnx"),
        ("flm_jax/interop/hub.py", "def f():\n    import torch"),
        ("flm_jax/main.py", "from flm_jax.flow import clock"),
        ("flm_jax/__init__.py", "from flm_jax import inference"),
        ("flm_jax/utils.py", ""),
        ("configs/mine.py", "from flm_jax.losses import LOSSES"),
        ("configs/mine.py", "from configs import common"),
        ("configs/mine.py", "from . import common"),
    ],
)
def test_planted_violations_are_found(path, source):
    assert violations(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("flm_jax/flow/clock.py", "import jax\nfrom flm_jax.errors import UserError"),
        ("flm_jax/flow/clock.py", "from flm_jax.flow import space\nfrom . import maps"),
        (
            "flm_jax/losses/psd.py",
            "from flm_jax.flow import times\nfrom flm_jax.losses import base",
        ),
        ("flm_jax/models/dit.py", "import flax.linen as nn\nfrom flm_jax.models import layers"),
        ("flm_jax/data/base.py", "def f():\n    import grain\n    import jax"),
        (
            "flm_jax/data/base.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n import jax",
        ),
        ("flm_jax/checkpoint.py", "import jax\ndef f():\n    import orbax.checkpoint as ocp"),
        ("flm_jax/training/step.py", "from flax import struct\nimport flax.struct"),
        ("flm_jax/training/loop.py", "from flax.struct import dataclass"),
        (
            "flm_jax/training/loop.py",
            "from flm_jax import checkpoint\nfrom flm_jax.data import base",
        ),
        ("flm_jax/export/folder.py", "from flm_jax.inference import FlowModel"),
        ("flm_jax/export/folder.py", "def f():\n    from onnx import helper"),
        ("flm_jax/main.py", "from flm_jax import __version__, cli"),
        ("flm_jax/__init__.py", "def load(path):\n    from flm_jax import inference"),
        ("configs/mine.py", "from ml_collections import ConfigDict\nfrom flm_jax import config"),
        ("configs/mine.py", "from flm_jax.configs import common"),
    ],
)
def test_what_is_allowed_passes(path, source):
    assert not violations(path, source)


def test_light_packages_stay_light():
    """Reading a config or tokenising text loads none of the slow libraries."""
    heavy = "jax", "flax", "orbax", "grain", "tensorflow", "torch", "tensorboardX", "scipy"
    command = (
        "import sys, flm_jax, flm_jax.config, flm_jax.tokenizers, flm_jax.data\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert (result.stdout.strip(), result.returncode) == ("[]", 0), result.stderr
