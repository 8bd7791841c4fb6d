"""Methods of a comparison: equal budgets, equal networks, and ways to write that exist."""

import pytest

from flm_jax import config as config_lib
from flm_jax import experiment as experiment_lib
from flm_jax.errors import UserError
from flm_jax.experiment import Experiment
from flm_jax.inference import choose_sampler
from flm_jax.lab.compare import grid, methods, results, runs
from flm_jax.lab.compare.runs import Training

BASE = config_lib.load("configs/compare.py:addition")
VOCABULARY = 17
STARTED = {"sdtt": "mdlm", "dcd": "duo", "fmlm": "flm", "any_order": "flm_given"}


def network(name):
    return Experiment(runs.of_method(BASE, name), VOCABULARY)


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_method_and_all_before_it_share_one_budget(name):
    chain = methods.chain(name)
    assert sum(stage.share for stage in chain) == 1.0
    assert (chain[-1].name, chain[-1].method) == (name, name)
    assert [one.before for one in chain] == ["", *(one.name for one in chain[:-1])]


def test_a_teacher_of_a_shared_budget_is_a_run_of_its_own():
    for name, before in STARTED.items():
        first, last = methods.chain(name)
        assert (first.name, first.share, last.share) == (f"{before}_half", 0.5, 0.5)
    found = [stage.name for stage in methods.stages(["flm", "fmlm", "sdtt", "mdlm"])]
    assert found == ["flm", "flm_half", "fmlm", "mdlm_half", "sdtt", "mdlm"]
    assert [x.name for x in methods.stages(["duo_curriculum"])] == [
        "duo_early_half",
        "duo_curriculum",
    ]


def test_an_objective_is_tuned_once_at_its_largest_share():
    found = methods.tuned(["fmlm", "flm", "dcd"])
    assert [(x.name, x.share, x.before) for x in found] == [
        ("flm", 1.0, ""),
        ("fmlm", 0.5, "flm"),
        ("duo", 0.5, ""),
        ("dcd", 0.5, "duo"),
    ]


@pytest.mark.parametrize("name", methods.METHODS)
def test_all_that_can_be_the_same_is_the_same(name, tmp_path):
    """Beside the objective, its kind of network, its sampler, and where it starts."""
    before = methods.METHODS[name].before
    source = f"runs/{before}_3" if before else ""
    config = Training(tmp_path, f"runs/{name}_3", name, 3, 1000, 1e-3, source).config(BASE)
    config_lib.validate(config, experiment_lib.tables())
    kinds = ("two_times", "causal", "mask_token")
    ours, base = (config_lib.to_dict(x) for x in (config, BASE))
    for section in ("data", "tokenizer", "clock", "mesh"):
        assert ours[section] == base[section]
    assert all(ours["model"][k] == base["model"][k] for k in base["model"] if k not in kinds)
    wanted = {"learning_rate": 1e-3, "warmup_steps": 100}
    assert ours["optim"] == base["optim"] | wanted
    assert ours["train"]["batch_size"] == base["train"]["batch_size"]
    assert (config.seed, config.train.steps, config.train.max_minutes) == (3, 1000, 0.0)
    place = str(tmp_path / source) if before else ""
    assert place in (config.teacher, config.init_from)
    assert (config.teacher == place) == bool(
        methods.METHODS[name].needs.named_teacher or not before
    )


def test_rounds_share_the_steps_that_there_are(tmp_path):
    for name, rounds in (("sdtt", 8), ("dcd", 5)):
        config = Training(tmp_path, "x", name, 0, 1000, 1e-3, "y").config(BASE)
        assert config.loss.options == {"rounds": rounds, "every": 1000 // rounds}
        few = Training(tmp_path, "x", name, 0, 3, 1e-3, "y").config(BASE)
        assert few.loss.options["every"] == 1 and few.train.save_every == 1


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_way_of_writing_suits_its_network(name):
    one = network(name)
    length = BASE.data.length
    ways = grid.ways(one, 99)
    assert 1 < len(ways) == len(set(ways)) <= 6 and ways[0].settings == ()
    for way in ways:
        knobs, options = results.split(way.settings)
        steps = (length - 1,) if name == "ar" else (4,)
        choose_sampler.choose(one, False, way.sampler, options, knobs | {"steps": steps}, None)


def test_points_are_the_ways_at_all_numbers_of_evaluations():
    found = list(grid.points("fmlm", network("fmlm"), (1, 2), 2))
    assert [(x.method, x.evaluations, x.settings) for x in found] == [
        ("fmlm", 1, ()),
        ("fmlm", 2, ()),
        ("fmlm", 2, (("gamma", 1.0),)),  # fresh noise comes between two evaluations
    ]
    assert {x.evaluations for x in grid.points("ar", network("ar"), (1, 2), 9)} == {7}


def test_more_evaluations_than_tokens_are_left_out_where_they_change_nothing():
    found = list(grid.points("mdlm", network("mdlm"), (2, 8, 16, 32), 9))
    by_order = {
        order: [
            x.evaluations for x in found if dict(x.settings).get(f"{results.OPTION}order") == order
        ]
        for order in ("drawn", "confidence")
    }
    assert by_order == {"drawn": [2, 8], "confidence": [2, 8]}
    assert [x.evaluations for x in found if not x.settings] == [2, 8, 16, 32]


def test_a_denoiser_with_given_tokens_writes_in_rounds_too():
    samplers = {way.sampler for way in grid.ways(network("flm_given"), 6)}
    assert "refinement" in samplers
    assert "refinement" not in {way.sampler for way in grid.ways(network("flm"), 6)}


def test_a_network_of_another_kind_writes_with_the_sampler_of_its_config():
    config = config_lib.changed(
        runs.of_method(BASE, "flm"),
        {"loss.name": "residual", "model.two_times": True, "sampler.name": "two_model"},
    )
    assert grid.ways(Experiment(config, VOCABULARY), 6) == (grid.Way("two_model"),)


def test_an_unknown_method_gets_a_sentence():
    with pytest.raises(UserError, match="there is no 'sdt'; did you mean sdtt.; use ar, mdlm"):
        methods.check(["flm", "sdt"])
