"""The one place of the sampling knobs: a field there is a knob everywhere."""

import dataclasses
import inspect
import pathlib
import subprocess
import sys

import pytest
import tiny

import flm_jax
from flm_jax import config as config_lib
from flm_jax import experiment, sampling
from flm_jax.errors import UserError
from flm_jax.sampling import Sampling, settled

ROOT = pathlib.Path(__file__).resolve().parents[2]

PROGRAM = """
import dataclasses, inspect, pathlib, sys, types
from typing import ClassVar
sys.path.insert(0, {tests!r})
# flm_jax.sampling with one more field, before anybody imports it.
import flm_jax
path = pathlib.Path(flm_jax.__file__).parent / "sampling.py"
field = "    shyness: float = knob(0.5, 'how shy it is', at_least=0, at_most=2)\\n"
source = path.read_text().replace("    patience: int", field + "    patience: int", 1)
module = types.ModuleType("flm_jax.sampling")
sys.modules["flm_jax.sampling"] = module
exec(compile(source, str(path), "exec"), module.__dict__)

import tiny
from flm_jax import config, experiment, samplers
from flm_jax import cli
from flm_jax.cli import help
from flm_jax.cli.options import parse
from flm_jax.config import settings
from flm_jax.inference import evaluation as evaluate
from flm_jax.errors import UserError
from flm_jax.inference import FlowModel
from flm_jax.options import Evaluation
from flm_jax.samplers.euler import Euler

@dataclasses.dataclass(frozen=True)
class Shy(Euler):
    shyness: float = 0.5
    uses: ClassVar[frozenset[str]] = Euler.uses | {{"shyness"}}

samplers.SAMPLERS["shy"] = Shy
print("key", "sampler.shyness" in dict(settings.knobs()))
command = cli.load("evaluate")
flag = parse(command.options, ["--checkpoint=x", "--shyness=2"])
print("flag", flag.knobs)
print("help", "--shyness" in help.page("evaluate", command))
print("keyword", "shyness" in inspect.signature(FlowModel.generate).parameters)
folder = pathlib.Path({folder!r})
made = experiment.Experiment(tiny.run_config(folder, sampler__name="shy"), tiny.V)
class Letters:
    bos_id, eos_id, pad_id = 1, 2, 0
    decode = staticmethod(str)
model = FlowModel(made, Letters(), tiny.params(made.model))
for wrong in (3, -1):
    try:
        model.generate(1, 1, shyness=wrong)
    except UserError as error:
        print("check", error)
for shyness in (None, 1.0, 1.0):
    model.generate(1, 1, shyness=shyness)
print("programs", len(model.programs.kept), [key.rule.shyness for key in model.programs.kept])
options = Evaluation(checkpoint="x", knobs={{"shyness": 1.0}})
print("origin", evaluate._origin(model, options, 1)["shyness"])
print("default", "shyness" in evaluate._origin(model, Evaluation(checkpoint="x"), 1))
try:
    model.generate(1, 1, sampler="euler", shyness=1.0)
except UserError as error:
    print("unused", error)
"""


def test_a_new_field_is_a_knob_everywhere(tmp_path):
    """Config key, flag, keyword, check, key of the compiled program, origin of stored samples."""
    program = PROGRAM.format(tests=str(ROOT / "tests"), folder=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [
        "key True",
        "flag {'shyness': 2.0}",
        "help True",
        "keyword True",
        "check shyness=3 must be at most 2",
        "check shyness=-1 must be at least 0",
        "programs 2 [0.5, 1.0]",
        "origin 1.0",
        "default False",
        "unused shyness=1 has no effect on the sampler Euler; leave it at 0.5 "
        "(shyness: how shy it is); samplers that use it: shy",
    ]


def test_the_section_of_the_config_has_the_same_knobs_and_defaults():
    section = config_lib.SamplerConfig()
    assert section.sampling(7) == Sampling(steps=7)
    changed = dataclasses.replace(section, gamma=0.5, patience=2)
    assert changed.sampling(3) == Sampling(gamma=0.5, patience=2, steps=3)
    assert changed.changed() == {"gamma": 0.5, "patience": 2}
    assert len({Sampling(), Sampling(steps=1), Sampling(gamma=0.1)}) == 2  # hashable, by value


def test_generate_shows_the_knobs_as_keywords():
    parameters = inspect.signature(flm_jax.FlowModel.generate).parameters
    assert [f.name for f in sampling.knob_fields()] == [*parameters][-len(sampling.knob_fields()) :]
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def test_what_older_samples_say_of_their_sampler_is_read_as_today():
    old = {"name": "flow_map", "options": {"gamma": 0.8}, "temperature": 0.0, "top_p": 1.0,
           "denoiser_temperature": 1.0, "prior_scale": 1.0, "length": 12}  # fmt: skip
    assert settled(old) == {"name": "flow_map", "options": {}, "gamma": 0.8, "length": 12}
    old["options"]["gamma"] = 0.0
    default = {"name": "flow_map", "options": {}, "length": 12}
    assert settled(old) == settled(settled(old)) == default


def test_gamma_among_the_options_of_a_flow_map_is_the_knob():
    tree = {"sampler": {"name": "flow_map", "options": {"gamma": 0.5}}}
    section = config_lib.resolve(tree).sampler
    assert (section.gamma, section.options) == (0.5, {})
    other = {"sampler": {"name": "mine:Own", "options": {"gamma": 0.5}}}
    assert config_lib.resolve(other).sampler.options == {"gamma": 0.5}


def test_knobs_of_the_config_are_for_its_own_sampler_only(tmp_path):
    """Another sampler is not refused for a knob that nobody gave to it."""
    config = tiny.run_config(
        tmp_path, sampler__name="flow_map", sampler__gamma=0.5, model__two_times=True
    )
    made = experiment.Experiment(config, tiny.V)
    model = flm_jax.FlowModel(made, None, tiny.params(made.model))
    rule, section = model.sampler("euler")
    assert section.gamma == 0.0 and section.name == "euler"
    assert model.sampler()[0].gamma == 0.5 and model.sampler()[1].gamma == 0.5
    with pytest.raises(UserError, match="gamma=0.3 has no effect on the sampler Euler"):
        model.sampler("euler", knobs={"gamma": 0.3})
    with pytest.raises(UserError, match="no sampling knob 'gama'; did you mean gamma"):
        model.sampler(knobs={"gama": 0.3})
