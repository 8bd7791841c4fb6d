"""The notebooks: no outputs stored, no broken links, every code cell runs from top to bottom."""

import ast
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import types

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
STRIP = "jupyter nbconvert --clear-output --ClearMetadataPreprocessor.enabled=True --inplace"

# Runs the cells of a notebook in one namespace, as Jupyter does, and draws every figure shown.
RUNNER = """
import json, sys
import matplotlib.pyplot as plt

drawn = []

def show():
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()
        drawn.append(sum(ax.has_data() for ax in plt.figure(number).axes))
    plt.close("all")

plt.show = show
names = {"__name__": "__main__"}
for index, cell in enumerate(json.load(open(sys.argv[1], encoding="utf-8"))["cells"]):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {index}", "exec"), names)
print("\\ndrawn:", json.dumps(drawn))
"""


def cells(path, kind):
    book = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == kind]


def test_there_are_notebooks():
    names = {path.stem for path in NOTEBOOKS}
    assert names >= {
        "quickstart",
        "official_checkpoint",
        "flow_map_explained",
        "write_fill_correct",
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_but_sources_is_stored(path):
    book = json.loads(path.read_text(encoding="utf-8"))
    assert set(book["metadata"]) <= {"kernelspec", "language_info"}, STRIP
    for cell in book["cells"]:
        assert not cell["metadata"], STRIP
        assert not cell.get("outputs") and cell.get("execution_count") is None, STRIP
    assert path.stat().st_size < 50_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_and_files_named_in_the_text_exist(path):
    text = "\n".join(cells(path, "markdown"))
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    local = [link for link in links if "://" not in link]
    assert local
    for link in local:
        assert (path.parent / link).exists(), link
    code = "\n".join(cells(path, "code"))
    for config in re.findall(r"configs/\w+\.py", text + code):
        assert (ROOT / config).is_file(), config


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_the_cells_import_of_ours_exists(path):
    """Cheap; whether the cells run is a slow test."""
    for cell in cells(path, "code"):
        for node in ast.walk(ast.parse(cell)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flm_jax"):
                exec(ast.unparse(node), {})


def test_the_first_code_cell_installs_and_is_the_same_everywhere():
    assert len({cells(path, "code")[0] for path in NOTEBOOKS}) == 1


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Runs the install cell in an empty folder: machine(...) -> the commands it called."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("glob.glob", lambda pattern: [])
    source = cells(NOTEBOOKS[0], "code")[0]

    def make_clone(path):
        (path / "flm_jax").mkdir(parents=True)
        (path / "flm_jax/__init__.py").touch()
        (path / "setup.cfg").touch()

    def run_cell(owner="OWNER", clone="", libraries=(), driver=None, pip=0):
        """``libraries`` are there; ``clone`` is made before; pip ends with that code."""
        calls = []
        if clone:
            make_clone(here / clone)

        def run(command, check=False, **options):
            calls.append(command)
            if command[0] == "git":
                make_clone(pathlib.Path(command[-1]))
            if check and pip and "pip" in command:
                raise subprocess.CalledProcessError(pip, command)
            return subprocess.CompletedProcess(command, pip, stdout=driver)

        def find_spec(name):
            file = pathlib.Path(sys.path[0], name, "__init__.py")
            if name in libraries or file.is_file():
                return types.SimpleNamespace(has_location=True, origin=str(file))
            if name == "flm_jax" and (here / name).is_dir():  # a namespace package
                return types.SimpleNamespace(has_location=False, origin=None)
            return None

        monkeypatch.setattr(subprocess, "run", run)
        monkeypatch.setattr(importlib.util, "find_spec", find_spec)
        monkeypatch.setattr("shutil.which", lambda name: driver and f"/usr/bin/{name}")
        exec(source.replace("com/OWNER", f"com/{owner}"), {})
        return calls

    return run_cell


LIBRARIES = ("jax", "flax", "optax", "grain", "matplotlib")


@pytest.mark.parametrize(
    ("driver", "wanted"),
    [(None, "jax"), ("550.54.15\n", "jax[cuda12]"), ("580.1\n", "jax[cuda13]")],
)
def test_the_install_cell_fetches_what_the_machine_needs(driver, wanted, machine):
    """Where flm_jax is missing: a clone, then pip with the JAX for this GPU driver."""
    with pytest.raises(ValueError, match="Set REPOSITORY, at the top of this cell"):
        machine()
    clone, *_, install = machine(owner="someone", driver=driver)
    assert clone[:2] == ["git", "clone"] and clone[-2] == "https://github.com/someone/flm_jax"
    assert install[1:4] == ["-m", "pip", "install"] and wanted in install
    assert clone[-1] in install and sys.path[0] == clone[-1]


@pytest.mark.parametrize("place", ["..", "flm_jax", "flm_jax_checkout"])
def test_the_install_cell_takes_the_clone_that_is_there(place, machine):
    """... around the notebook or beside it; without a network, if the libraries are there."""
    (install,) = machine(clone=place, libraries=LIBRARIES, pip=1)
    assert install[-4:] == ["-e", os.path.abspath(place), "jax", "matplotlib"]
    assert sys.path[0] == os.path.abspath(place)


def test_the_install_cell_says_when_it_could_not_install(machine):
    with pytest.raises(subprocess.CalledProcessError):
        machine(clone="..", libraries=LIBRARIES[:2], pip=1)


def test_the_install_cell_does_nothing_where_all_is_there(machine):
    assert machine(libraries=("flm_jax", *LIBRARIES)) == []
    (install,) = machine(libraries=("flm_jax", *LIBRARIES[:-1]))
    assert install[-2:] == ["jax", "matplotlib"] and "-e" not in install


def test_only_the_first_cell_names_the_repository():
    for path in NOTEBOOKS:
        first, *others = cells(path, "code")
        statements = [ast.unparse(node) for node in ast.parse(first).body]
        after = next(line for line in statements if not line.startswith("import "))
        assert after.startswith("REPOSITORY = ") and "OWNER" not in str(others)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.slow
def test_every_cell_runs_and_every_picture_is_drawn(path, tmp_path):
    environment = os.environ | {
        "FLM_JAX_TINY": "1",
        "MPLBACKEND": "Agg",
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": os.environ.get(
            "FLM_JAX_TEST_CACHE", os.path.expanduser("~/.cache/flm_jax/test-compile-cache")
        ),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(path)],
        capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    drawn = json.loads(done.stdout.rpartition("drawn:")[2])
    code = "\n".join(cells(path, "code"))
    shows = sum(
        ast.unparse(node) == "plt.show()"
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call)
    )
    assert len(drawn) == shows > 0 and all(drawn)
