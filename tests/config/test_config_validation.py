"""Clashes in a config: all found before anything compiles, each explained with its values."""

import dataclasses
import json
import re

import pytest
from config_changes import Distilling, changed, sentence

from flm_jax import config as config_lib
from flm_jax import data, evals, tokenizers
from flm_jax.contracts import Needs
from flm_jax.losses import LSD, PSD, FlowMatching


@dataclasses.dataclass(frozen=True)
class Plain:
    scale: float = 1.0
    needs = Needs()
    uses = frozenset()
    corpus = ""

    def steps_for(self, length):
        return None

    def without_effect(self, knobs):
        return {}


class ForSynthetic(Plain):
    corpus = "synthetic"


TABLES = {
    "loss": {"flow_matching": Plain, "psd": Distilling},
    "sampler": {"euler": Plain},
    "data": {"names": Plain},
    "tokenizer": {"letters": Plain},
    "eval": {"entropy": Plain, "text_statistics": Plain, "truth": ForSynthetic},
}
DISTILLING = {"name": "psd", "options": {"path": "x"}}


def make(**overrides):
    """The default config with names that TABLES knows, and changes."""
    return changed(**{"data__name": "names", "tokenizer__name": "letters"} | overrides)


def test_defaults_and_edges_are_valid():
    config_lib.validate(make(), TABLES)
    config_lib.validate(make(data__length=3, model__dropout=0, sampler__top_p=1), TABLES)
    config_lib.validate(
        make(loss=DISTILLING, teacher="t", model__two_times=True),
        TABLES,
    )


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"model__heads": 7}, "model.heads=7 does not divide model.width=768; try model.heads=6"),
        ({"model__width": 36}, "heads of odd size 3"),
        ({"data__length": 2}, "data.length=2 must be at least 3"),
        ({"sampler__steps": ()}, "sampler.steps is empty; give at least one value"),
        ({"sampler__steps": (1, 0)}, "0 in sampler.steps must be at least 1"),
        ({"train__eval_taus": (0.5, 1.5)}, "1.5 in train.eval_taus must be at most 1"),
        ({"model__dropout": 1.0}, "model.dropout=1.0 must be below 1"),
        ({"model__dropout": -0.1}, "model.dropout=-0.1 must be at least 0"),
        ({"sampler__top_p": 0.0}, "sampler.top_p=0.0 must be greater than 0"),
        ({"sampler__top_p": 1.1}, "sampler.top_p=1.1 must be at most 1"),
        ({"sampler__temperature": -1}, "sampler.temperature=-1.0 must be at least 0"),
        ({"optim__learning_rate": 0}, "optim.learning_rate=0.0 must be greater than 0"),
        ({"optim__ema_decay": 1}, "optim.ema_decay=1.0 must be below 1"),
        ({"model__logit_cap": -30}, "model.logit_cap=-30.0 must be at least 0"),
        ({"train__batch_size": 0}, "train.batch_size=0 must be at least 1"),
        ({"train__keep_latest": 0}, "train.keep_latest=0 must be at least 1"),
        ({"train__profile_steps": (5,)}, "train.profile_steps=5 must be two numbers, FIRST,COUNT"),
        ({"train__profile_steps": (2, 3, 4)}, "train.profile_steps=2,3,4 must be two numbers"),
        ({"train__profile_steps": (1, 3)}, "begins with step 1, which compiles; begin with step 2"),
        ({"train__profile_steps": (5, 0)}, "0 in train.profile_steps must be at least 1"),
        (
            {"train__profile_steps": (10, 3), "train__steps": 11, "optim__warmup_steps": 2},
            "train.profile_steps=10,3 goes on to step 12, but train.steps=11; begin earlier",
        ),
        ({"model__dtype": "float16"}, "float16 is not known; use float32 or bfloat16"),
        ({"space": "dense"}, "space=dense is not known; use auto or onehot or projected"),
        ({"optim__accumulation_steps": 3}, "=512 is not a multiple of optim.accumulation_steps=3"),
        ({"optim__schedule": "cosine", "train__steps": 9}, "train.steps=9 is not above"),
        ({"mesh__fsdp": 0}, "mesh.fsdp=0 must be a number of devices"),
        ({"mesh__fsdp": -1}, "mesh.data and mesh.fsdp are both -1"),
        ({"mesh__tensor": -2}, "mesh.tensor=-2 must be at least -1"),
        ({"data__name": "name"}, "unknown data set 'name'; did you mean names?"),
        ({"tokenizer__name": ""}, "tokenizer.name: no tokenizer is named"),
        ({"loss__name": "fm"}, "unknown loss 'fm'"),
        ({"loss__options": {"scales": 1}}, "loss 'flow_matching' has no option 'scales'"),
        ({"evals": ("entropi",)}, "unknown evaluator 'entropi'; did you mean entropy?"),
        ({"evals": ("truth",)}, "'truth' is for data.name='synthetic' only but data.name='names'"),
        (
            {"model__learned_positions": 3},
            "model.learned_positions=3 is less than data.length=128; set",
        ),
        ({"teacher": "runs/a"}, "teacher='runs/a' is set but loss 'flow_matching' uses none"),
        ({"model__two_times": True}, "a network of one time but model.two_times=True"),
        ({"loss": DISTILLING, "model__two_times": True}, "loss 'psd' needs a teacher; give --con"),
        ({"loss": DISTILLING, "teacher": "t"}, "model.two_times=False; set model.two_times=True"),
        (
            {"sampler__fixed_point_iterations": 2},
            "fixed_point_iterations=2 tells a network its own estimate, but model.self_",
        ),
    ],
)
def test_clashes_are_explained(overrides, expected):
    assert expected in sentence(config_lib.validate, make(**overrides), TABLES)


def test_all_problems_are_told_at_once():
    lines = sentence(
        config_lib.validate, make(model__dropout=2, sampler__top_p=2, loss__name="x"), TABLES
    ).splitlines()
    assert len(lines) == 3


THEIRS = """
from flm_jax.data.base import MemoryCorpus
from flm_jax.tokenizers.characters import CharactersRecipe

class Rhymes(MemoryCorpus):
    name = "rhymes"

    def __init__(self, verses: int = 1):
        self.verses = verses

    def read(self):
        return dict.fromkeys(self.splits, ["cat hat bat"] * self.verses)

class Letters(CharactersRecipe):
    pass
"""


def test_text_and_tokenizer_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "their_text.py").write_text(THEIRS)
    (tmp_path / "their_broken.py").write_text("import no_such_library")
    monkeypatch.syspath_prepend(tmp_path)
    text = {"name": "their_text:Rhymes", "length": 4, "options": {"verses": "9"}}
    letters = {"name": "their_text:Letters", "options": {"min_count": 10}}
    made = data.load_data(text, letters, tmp_path)
    assert len(made.corpus.source("train")) == 9 and "c" not in made.tokenizer.pieces
    assert "t" in tokenizers.load(made.rows["train"].path / "tokenizer").pieces
    broken = "their_broken:Row"
    failed = (
        f"{broken!r}: importing their_broken failed (ModuleNotFoundError: No module named "
        "'no_such_library'); correct it, or put its folder on PYTHONPATH"
    )
    for change, place in (
        ({"data__name": broken}, "data.name: data set "),
        ({"tokenizer__name": broken}, "tokenizer.name: tokenizer "),
        ({"evals": (broken,)}, "evals: evaluator "),
    ):
        assert sentence(config_lib.validate, make(**change), TABLES) == place + failed
    assert sentence(data.load_corpus, {"name": broken}) == "data set " + failed
    assert sentence(data.plan, text, {"name": broken}, tmp_path) == "tokenizer " + failed
    args = (evals.EVALS, broken, {}, "evaluator")
    assert sentence(config_lib.build, *args, tokenizer=made.tokenizer) == "evaluator " + failed
    (tmp_path / "flm_tokenizer.json").write_text(
        json.dumps(dict(name=broken, fingerprint="", files={}))
    )
    assert sentence(tokenizers.load, tmp_path) == "tokenizer " + failed


@pytest.mark.parametrize(
    ("mesh", "devices", "shape"),
    [
        ((-1, 1, 1), 8, (8, 1, 1)),
        ((-1, 2, 2), 8, (2, 2, 2)),
        ((2, -1, 1), 8, (2, 4, 1)),
        ((1, 1, -1), 1, (1, 1, 1)),
        ((2, 2, 2), 8, (2, 2, 2)),
    ],
)
def test_mesh_shape(mesh, devices, shape):
    assert config_lib.mesh_shape(config_lib.MeshConfig(*mesh), devices) == shape


def test_devices_are_checked():
    def check(devices, processes=1, **overrides):
        return config_lib.validate_devices(make(**overrides), devices, processes)

    assert check(8, train__batch_size=8) == (8, 1, 1)
    text = sentence(check, 8, train__batch_size=12)
    assert "train.batch_size=12 must be a multiple of 8" in text and "try 8 or 16" in text
    assert "try 8" in sentence(check, 8, train__batch_size=4)
    assert check(8, mesh__tensor=8, train__batch_size=1) == (1, 1, 8)
    assert "on 2 processes" in sentence(check, 8, 2, mesh__tensor=8, train__batch_size=1)
    text = sentence(check, 4, train__batch_size=8, optim__accumulation_steps=4)
    assert "multiple of 16" in text and "optim.accumulation_steps=4" in text
    assert "multiple of 3 devices but there are 8" in sentence(check, 8, mesh__fsdp=3)
    assert "needs 4 devices but there are 8" in sentence(check, 8, mesh__data=4)


def test_vocabulary_must_be_the_tokenizers():
    config_lib.validate_vocabulary(5, 5, "the checkpoint")
    text = sentence(config_lib.validate_vocabulary, 5, 6, "the checkpoint")
    assert "the checkpoint has a vocabulary of 5 entries but the tokenizer has 6" in text


@pytest.mark.parametrize("diagonal", [0.0, 0.1, 0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("boundary", [1 / 3, 1 / 32, 1 / 161, 1e-4])
def test_a_boundary_fraction_that_gives_no_sample_is_said_with_what_gives_one(diagonal, boundary):
    def count(batch, fraction):
        return PSD(diagonal_fraction=diagonal, boundary_fraction=fraction).kinds(batch).boundary

    for batch in (1, 2, 7, 8, 12, 32, 40, 48, 100, 512):
        loss = PSD(diagonal_fraction=diagonal, boundary_fraction=boundary)
        said = loss.notices(batch)
        if count(batch, boundary):
            assert not said
            continue
        found = re.search(
            r"=(\S+) of the .*=(\d+) gives no .*=(\S+) or train.batch_size=(\d+),", *said
        )
        given, size, fraction, enough = map(float, found.groups())
        assert (given, size) == (float(f"{boundary:g}"), batch)
        assert count(batch, fraction) == 1 and count(batch, 0.98 * fraction) == 0
        assert count(int(enough), boundary) == 1


def test_losses_without_boundary_samples_say_nothing_about_them():
    for loss in (PSD(boundary_fraction=0.0), LSD(diagonal_fraction=1.0), FlowMatching()):
        assert not loss.notices(8)
    (said,) = PSD().notices(32)
    assert "boundary_fraction=0.0625 or train.batch_size=64, or the fraction to 0" in said
