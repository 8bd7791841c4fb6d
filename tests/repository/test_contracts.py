"""Contracts: every row keeps its own, a class that breaks one is refused, nobody probes."""

import ast
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import pytest
import tiny

from flm_jax import config as config_lib
from flm_jax import registry
from flm_jax.config import Config, LossConfig, ModelConfig, SamplerConfig
from flm_jax.contracts import Needs
from flm_jax.data import DATASETS
from flm_jax.data.base import Corpus
from flm_jax.errors import UserError
from flm_jax.evals import EVALS
from flm_jax.evals.base import Evaluator
from flm_jax.flow.space import SPACES, Space
from flm_jax.losses import LOSSES, FlowMatching
from flm_jax.losses.base import Loss, PerToken
from flm_jax.samplers import SAMPLERS
from flm_jax.samplers.base import Sampler
from flm_jax.samplers.loops import LoopSampler
from flm_jax.tokenizers import TOKENIZERS, Recipe

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONTRACTS = {
    Loss: LOSSES,
    Sampler: SAMPLERS,
    Space: SPACES,
    Corpus: DATASETS,
    Recipe: TOKENIZERS,
    Evaluator: EVALS,
}


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
def test_every_row_keeps_the_contract(contract):
    rows = CONTRACTS[contract]
    assert rows and all(issubclass(row, contract) for row in rows.values())
    assert registry._contract(rows) is contract


def test_a_class_that_lacks_something_fails_where_it_is_defined():
    with pytest.raises(TypeError, match="class Half lacks draw, evaluate, needs"):

        class Half(Loss):
            pass

    class Part(Loss, unfinished=True):
        needs = Needs()

        def draw(self, key, batch, space):
            return {}

    with pytest.raises(TypeError, match="class Rest lacks evaluate"):

        class Rest(Part):
            pass

    class Whole(Part):
        def evaluate(self, at, batch, draws):
            return PerToken(batch.mask_BL, batch.mask_BL, {})

    assert Whole().denoises and not Whole().first_state({})
    with pytest.raises(TypeError, match="class Rule lacks needs, propose"):

        class Rule(LoopSampler):
            pass


def test_losses_and_samplers_that_know_no_self_conditioning_refuse_it():
    """Each in one sentence; the others take a network with it as well as one without."""
    know = {"flow_matching", "psd", "lsd", "esd", "any_order"}
    know |= {"euler", "churn", "flow_map", "refinement", "block_diffusion"}
    for table, what in (LOSSES, "loss"), (SAMPLERS, "sampler"):
        for name, row in table.items():
            found = []
            for self_conditioning in False, True:
                model = ModelConfig(**tiny.needs(row()), self_conditioning=self_conditioning)
                teacher = "t" if what == "loss" and row().needs.named_teacher else ""
                config = dataclasses.replace(Config(), model=model, teacher=teacher)
                section = {
                    "loss": LossConfig(name),
                    "sampler": SamplerConfig(name=name, steps=(127,)),
                }
                config = dataclasses.replace(config, **{what: section[what]})
                try:
                    config_lib.validate(config, {what: table})
                except UserError as error:
                    found.append(str(error))
            verb = "trains" if what == "loss" else "needs"
            sentence = (
                f"{what} {name!r} {verb} a network without self-conditioning but "
                "model.self_conditioning=True; set model.self_conditioning=False or choose another"
            )
            assert found == ([] if name in know else [sentence])


# Python, JAX, files and the user's modules have attributes that may be missing; ours do not.
FOREIGN = {
    "__init__.py": 1,  # our own modules by name, for `flm_jax.load`
    "checkpoint/arrays.py": 4,
    "checkpoint/s3_arrays.py": 1,
    "checkpoint/stores.py": 1,
    "cli/streams.py": 1,
    "config/coercion.py": 3,
    "config/loading.py": 1,
    "contracts.py": 1,
    "data/documents.py": 2,
    "data/published/streams.py": 1,
    "data/python_prose.py": 1,
    "host/doctor.py": 1,
    "host/download.py": 1,
    "host/memory.py": 1,
    "host/numerics.py": 1,
    "host/sharding.py": 3,
    "host/watchdog.py": 2,
    "interop/pickle_machine.py": 1,
    "interop/torch_checkpoint.py": 1,
    "lab/parity/objective.py": 1,
    "lab/parity/programs.py": 1,
    "lab/plan/memory.py": 2,
    "target.py": 1,
    "training/products.py": 1,
    "training/stop.py": 1,
}


def test_nobody_asks_whether_an_object_of_ours_has_an_attribute():
    """A new probe is either of a foreign object, and counted here, or belongs into a contract."""
    found = {}
    for file in sorted((ROOT / "flm_jax").rglob("*.py")):
        calls = [
            node
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("getattr", "hasattr")
        ]
        if calls:
            found[file.relative_to(ROOT / "flm_jax").as_posix()] = len(calls)
    assert found == FOREIGN


MODULE = '''
import dataclasses
import jax
from flm_jax.contracts import Needs
from flm_jax.losses.base import PerToken
from flm_jax.losses.flow_matching import FlowMatching

@dataclasses.dataclass(frozen=True)
class Scaled(FlowMatching):
    """The cross-entropy times a factor; keeps a copy of the student, renewed every few updates."""

    factor: float = 2.0
    every: int = 3

    @property
    def needs(self):
        return Needs(teacher=False)

    def first_state(self, params):
        return {"copy": params}

    def next_state(self, state, step, params, ema):
        renew = step % self.every == 0
        return {"copy": jax.tree.map(lambda a, b: jax.numpy.where(renew, a, b), params,
                                     state["copy"])}

    def evaluate(self, at, batch, draws):
        loss_BL, count_BL, metrics = super().evaluate(at, batch, draws)
        distance = sum(jax.numpy.sum((a - b) ** 2) for a, b in zip(
            jax.tree.leaves(at.student.params), jax.tree.leaves(at.nets["copy"].params)))
        return PerToken(self.factor * loss_BL, count_BL,
                        metrics | {"distance": jax.numpy.broadcast_to(distance, loss_BL.shape)})

class Unrelated:
    pass
'''


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "their_losses.py").write_text(MODULE)
    (tmp_path / "their_broken.py").write_text("import no_such_library")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_class_of_the_users_own_by_module_and_name(own_module):
    loss = config_lib.build(LOSSES, "their_losses:Scaled", {"factor": "3"}, "loss")
    assert loss.factor == 3.0 and isinstance(loss, Loss)
    for name, sentence in {
        "their_losses:Skaled": "Skaled of their_losses is not a flm_jax.losses.base.Loss; those "
        "are: FlowMatching, Scaled",
        "their_losses:Unrelated": "Unrelated of their_losses is not a flm_jax.losses.base.Loss",
        "their_broken:Scaled": "importing their_broken failed .*no_such_library.*PYTHONPATH",
        "nowhere:Scaled": "importing nowhere failed",
        "flow_machting": "did you mean flow_matching.*MODULE:CLASS names one of yours",
    }.items():
        with pytest.raises(UserError, match=sentence):
            config_lib.build(LOSSES, name, {}, "loss")
    with pytest.raises(
        UserError, match="is not a flm_jax.samplers.base.Sampler; there is none in it"
    ):
        config_lib.build(SAMPLERS, "their_losses:Scaled", {}, "sampler")


@pytest.mark.slow  # three sessions of training
def test_what_a_loss_keeps_is_trained_saved_and_resumed_exactly(own_module, tmp_path):
    """A loss of a module of the user's, from a config to a model that is loaded."""
    import json

    from flm_jax import experiment, inference
    from flm_jax.training import loop

    def run(folder, *limits):
        for steps in limits:
            config = tiny.run_config(
                tmp_path / "data", loss={"name": "their_losses:Scaled", "options": {}},
                train__steps=steps, train__save_every=4, train__log_every=1,
                train__sample_every=0, evals=(),
            )  # fmt: skip
            config_lib.validate(config, experiment.tables())
            assert loop.train(config, folder) == 0
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return {row["step"]: row["distance"] for row in rows if "distance" in row}

    whole, parts = run(tmp_path / "whole", 8), run(tmp_path / "parts", 4, 8)
    assert whole == parts and len(whole) == 8
    # The copy is that of the start, of update 3, of update 6; the rate of the first update is 0.
    assert [step for step, distance in whole.items() if distance == 0.0] == [1, 2, 4, 7]
    models = [inference.load(tmp_path / name) for name in ("whole", "parts")]
    leaves = [jax.tree.leaves(model.params) for model in models]
    assert all((a == b).all() for a, b in zip(*leaves, strict=True))


def test_values_are_divided_by_what_counts():
    """Counts of any size, and a batch in which nothing counts."""
    from flm_jax.flow.space import Projected
    from flm_jax.training import step as step_lib

    class Counted(FlowMatching):
        def evaluate(self, at, batch, draws):
            value = jnp.sum(at.student.table) + batch.tokens_BL.astype(jnp.float32)
            count = jnp.where(batch.tokens_BL > 3, 0.0, batch.tokens_BL)
            return PerToken(jnp.where(count > 0, value, jnp.nan), count, {})

    model, batch = tiny.model(), tiny.batch()
    params = tiny.params(model)
    for parts in (1, 2):
        gradients = jax.jit(
            step_lib.make_gradients(
                {"student": model.net}, Counted(), Projected, tiny.clock(), parts
            )
        )
        for tokens_BL in (batch.tokens_BL, jnp.full_like(batch.tokens_BL, 9)):
            grads, metrics = gradients(params, {}, tokens_BL, batch.mask_BL, jax.random.key(0))
            count = jnp.where(tokens_BL > 3, 0, tokens_BL)
            value = jnp.sum(params["embed"]["table"]) + tokens_BL
            wanted = jnp.sum(value * count) / jnp.maximum(jnp.sum(count), 1)
            assert metrics["loss"] == pytest.approx(float(wanted), rel=1e-5)
            slope = float(jnp.sum(count) > 0)
            assert grads["embed"]["table"] == pytest.approx(slope, rel=1e-5)
