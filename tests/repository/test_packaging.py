"""The three ways to have the code, clone, `pip install -e` and wheel: the same configs in each."""

import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# In a project whose own package has the name that ours has in the repository.
CHECK = """
import pathlib
from flm_jax import config
from flm_jax.configs import common, proof

assert config.load("quickstart:distill", {"teacher": "a"}).stage == "distill"
assert config.load("configs/owt.py").data.length == 1024
assert config.load("mine.py").stage == "duo"
import configs.own
assert pathlib.Path(configs.own.__file__).parent == pathlib.Path.cwd() / "configs"
print(pathlib.Path(common.__file__).parent)
"""
MINE = """
from flm_jax.configs import common
from configs import own

def get_config():
    return common.get_config(own.STAGE)
"""
# In a project without one.
CHECK_WITHOUT = """
import importlib.util
from flm_jax import config

assert config.load("theirs.py").stage == "duo"
assert importlib.util.find_spec("configs") is None
"""
THEIRS = """
from configs import common

def get_config():
    return common.get_config("duo")
"""


@pytest.mark.slow
def test_the_configs_of_clone_editable_install_and_wheel(tmp_path):
    pytest.importorskip("setuptools", minversion="70.1", reason="it makes the wheel")
    source, project, other = (tmp_path / name for name in ("source", "project", "other"))
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("flm_jax", "configs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    (project / "configs").mkdir(parents=True)
    (project / "configs/__init__.py").touch()
    (project / "configs/own.py").write_text("STAGE = 'duo'")
    (project / "mine.py").write_text(MINE)
    other.mkdir()
    (other / "theirs.py").write_text(THEIRS)

    def environment(name):
        """A virtual environment with our libraries and without ourselves: its interpreter."""
        made = tmp_path / name
        command = [sys.executable, "-m", "venv", "--without-pip", str(made)]
        subprocess.run(command, check=True, timeout=120)
        (site,) = made.glob("lib/python*/site-packages")
        libraries = [path for path in sys.path if path.endswith("-packages")]
        (site / "libraries.pth").write_text("\n".join(libraries))
        return made / "bin/python", site

    def run(python, code, folder, path=""):
        env = {"PYTHONPATH": str(path)} if path else {}
        command = [str(python), "-c", code]
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return pathlib.Path(done.stdout.strip())

    def pip(*words):
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, words)]
        command += ["--quiet", "--no-deps", "--no-build-isolation"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr

    python, _ = environment("clone")
    assert run(python, CHECK, project, source) == source / "configs"

    python, _ = environment("editable")
    pip("--python", python, "install", "--ignore-installed", "--editable", source)
    assert run(python, CHECK, project) == source / "configs"
    run(python, CHECK_WITHOUT, other)

    pip("wheel", "--wheel-dir", tmp_path, source)
    (wheel,) = tmp_path.glob("*.whl")
    python, site = environment("wheel")
    with zipfile.ZipFile(wheel) as archive:  # installing is unpacking, where all is Python
        names = set(archive.namelist())
        packed = {name.partition("/")[0] for name in names}
        archive.extractall(site)
    assert packed == {"flm_jax", wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"}
    files = (path for path in source.glob("flm_jax/**/*.*") if "__pycache__" not in path.parts)
    assert {path.relative_to(source).as_posix() for path in files} - names == set()
    shutil.rmtree(source)
    assert run(python, CHECK, project) == site / "flm_jax/configs"
    run(python, CHECK_WITHOUT, other)
