"""Likelihood: exact networks get the likelihood itself, others more, and nobody less."""

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import untrained
from commands import call
from exact_rows import PAIRS, Rows, single
from known_chain import LETTERS, Chain

from flm_jax import config as config_lib
from flm_jax import inference
from flm_jax.data import fixed_batch
from flm_jax.errors import UserError
from flm_jax.experiment import Experiment
from flm_jax.flow.clock import identity
from flm_jax.flow.net import Net
from flm_jax.inference import FlowModel, likelihood
from flm_jax.inference.likelihood import second_corpus

NETS: dict[str, Callable[[Any], Net]] = {}  # what a `Known` experiment answers with, by name


@dataclasses.dataclass(frozen=True)
class Known(Experiment):
    """An experiment whose network is written out."""

    name: str = ""

    def net(self, params, temperature: float = 1.0) -> Net:
        return NETS[self.name](params)

    def denoiser(self, params, temperature: float = 1.0) -> Net:
        return self.net(params)

    clock = identity()


def known(name: str, make_net, params, tokenizer, loss="flow_matching", **config) -> FlowModel:
    NETS[name] = make_net
    section = {"name": loss} if isinstance(loss, str) else loss
    tree = {"loss": section, "sampler": {"batch_size": 64}, **config}
    resolved = config_lib.resolve(tree)
    return FlowModel(Known(resolved, tokenizer.vocab_size, name=name), tokenizer, params)


@dataclasses.dataclass(frozen=True)
class Ids:
    """A tokenizer of ids that are letters; the first is BOS."""

    vocab_size: int
    pad_id: int | None = None
    bos_id: int = 0
    eos_id: int = 0
    name: str = "ids"

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(97 + i) for i in ids if i != self.pad_id)


TABLES = {"projected": np.array([[-1.0, 0.5], [1.0, 0.1], [0.3, 2.0]]), "onehot": np.eye(3)}
ROWS = Rows(np.array([[0, 1, 1, 2], [0, 2, 1, 1], [0, 2, 2, 2]]), np.array([0.6, 0.3, 0.1]), 3)


def flow(space: str, rows: Rows = ROWS, **config) -> FlowModel:
    params = rows.flow_params(TABLES[space])
    make = lambda params: rows.flow(params, space == "projected")  # noqa: E731
    return known(f"{space}", make, params, Ids(3), space=space, **config)


def excess(bound: likelihood.Bound, nats_N: np.ndarray) -> tuple[float, float]:
    """By how much the rows' bounds are above their nats, and its standard error."""
    excess_N = bound.nats_N - nats_N
    return excess_N.mean(), excess_N.std() / len(excess_N) ** 0.5


@pytest.mark.parametrize("kind", ["variational", "ode"])
@pytest.mark.parametrize("space", ["projected", "onehot"])
def test_flow_that_knows_the_rows_is_as_likely_as_they_are(space, kind):
    tokens = ROWS.drawn(384)
    bound = likelihood.bound(flow(space), tokens, kind, seed=1, steps=24)
    above, error = excess(bound, ROWS.nats_K[ROWS.which(tokens)])
    assert error < 0.05
    assert abs(above) < 4 * error + 0.01
    assert bound.kind == kind and bound.sign == "<=" and bound.tokens == 384 * 3
    assert bound.nats_per_token == pytest.approx(bound.nats_N.sum() / bound.tokens)


def test_flow_that_believes_something_else_pays_for_it():
    """The denoiser of other probabilities: the bound is of its own, which is at least their KL."""
    believed = dataclasses.replace(ROWS, p_K=np.array([0.05, 0.15, 0.8]))
    tokens = ROWS.drawn(256)
    for kind in ("variational", "ode"):
        bound = likelihood.bound(flow("projected", believed), tokens, kind, steps=24)
        above, error = excess(bound, believed.nats_K[ROWS.which(tokens)])
        assert abs(above) < 4 * error + 0.01
        assert bound.nats_N.mean() > ROWS.nats_K[ROWS.which(tokens)].mean() + 0.8


def test_masked_diffusion_that_knows_the_chain_is_exact():
    chain = Chain()
    rows = chain.rows(200, 10)
    params = chain.masked_net().params
    model = known(
        "masked",
        lambda params: dataclasses.replace(chain.masked_net(), params=params),
        params,
        LETTERS,
        "masked_diffusion",
        model={"mask_token": True},
    )
    truth_N = chain.score(rows).sum(axis=1)
    bound = likelihood.bound(model, rows, times=16)
    above, error = excess(bound, truth_N)
    assert error < 0.02 * truth_N.mean()
    assert abs(above) < 4 * error
    assert bound.nats_per_token == pytest.approx(truth_N.sum() / 1800, rel=0.05)
    assert (bound.kind, bound.tokens) == ("masked", 200 * 9)


def test_chain_is_exact_and_says_so():
    chain = Chain()
    rows = chain.rows(50, 10)
    net = chain.causal_net()
    model = known(
        "causal",
        lambda params: dataclasses.replace(net, params=params),
        net.params,
        LETTERS,
        "autoregressive",
        model={"causal": True},
    )
    bound = likelihood.bound(model, rows)
    truth_N = chain.score(rows).sum(axis=1)
    np.testing.assert_allclose(bound.nats_N, truth_N, rtol=1e-5)
    assert str(bound) == f"= {truth_N.sum() / 450:.3f} ± {bound.standard_error:.3f}"
    assert bound.standard_error == pytest.approx(truth_N.std(ddof=1) / 50**0.5 / 9, rel=1e-4)
    texts = [LETTERS.decode(row.tolist()) for row in rows]
    per_character = truth_N.sum() / sum(map(len, texts))
    assert bound.nats_per_character == pytest.approx(per_character, rel=1e-5)


@pytest.mark.parametrize("rows", [single(np.array([0.5, 0.3, 0.15, 0.05])), PAIRS])
def test_uniform_diffusion_that_knows_the_rows_is_exact(rows):
    if rows is PAIRS:
        rows = Rows(np.c_[[0] * 4, PAIRS.tokens_KL + 1], PAIRS.p_K, 3)
    else:
        rows = Rows(np.c_[[0] * 4, rows.tokens_KL + 1], rows.p_K, 5)
    size = rows.vocab_size
    params = rows.flow_params(np.eye(size))
    model = known(f"uniform{size}", rows.uniform_net, params, Ids(size), "uniform_diffusion")
    tokens = rows.drawn(800)
    bound = likelihood.bound(model, tokens, times=64)
    above, error = excess(bound, rows.nats_K[rows.which(tokens)])
    assert error < 0.02
    assert abs(above) < 4 * error
    assert bound.kind == "uniform"


def test_what_counts():
    tokens = np.array([[0, 1, 2, 2], [0, 2, 1, 2], [2, 2, 2, 2]])
    counted = likelihood.counted(tokens, Ids(3, pad_id=2))
    assert counted.tolist() == [
        [False, True, False, False],
        [False, True, True, False],
        [False, False, False, False],
    ]
    for tokenizer in (Ids(3), Ids(3, pad_id=0)):  # none, or one that is EOS, too
        assert likelihood.counted(np.array([[0, 1, 0, 0]]), tokenizer).sum() == 3


def test_padding_is_paid_for_but_does_not_count():
    model = flow("projected")
    whole = likelihood.bound(model, ROWS.drawn(64))
    padded = FlowModel(model.experiment, Ids(3, pad_id=2), model.params)
    bound = likelihood.bound(padded, ROWS.drawn(64))
    np.testing.assert_array_equal(bound.nats_N, whole.nats_N)
    assert bound.tokens == likelihood.counted(ROWS.drawn(64), padded.tokenizer).sum() < 64 * 3
    assert bound.nats_per_token == pytest.approx(whole.nats_per_token * 192 / bound.tokens)


@pytest.mark.slow
def test_draws_follow_the_seed_and_not_the_batch():
    tokens = ROWS.drawn(40)
    for kind in ("variational", "ode"):
        small = flow("projected", sampler={"batch_size": 7})
        first = likelihood.bound(flow("projected"), tokens, kind, seed=2, steps=4, times=2)
        again = likelihood.bound(small, tokens, kind, seed=2, steps=4, times=2)
        other = likelihood.bound(flow("projected"), tokens, kind, seed=3, steps=4, times=2)
        np.testing.assert_allclose(again.nats_N, first.nats_N, rtol=1e-4, atol=1e-4)
        assert np.abs(other.nats_N - first.nats_N).min() > 0
        assert len(np.unique(first.nats_N)) == 40  # rows of the same tokens have their own noise


@pytest.fixture(name="folder", scope="module")
def fixture_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("likelihood")


LOSSES = {  # loss -> its sampler, the kinds of likelihood it has
    "flow_matching": ("euler", ("variational", "ode")),
    "psd": ("flow_map", ("variational", "ode")),
    "masked_diffusion": ("ancestral_masked", ("masked",)),
    "uniform_diffusion": ("ancestral_uniform", ("uniform",)),
    "autoregressive": ("autoregressive", ("exact",)),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_every_kind_of_model_has_its_bound(folder, loss):
    sampler, kinds = LOSSES[loss]
    model = inference.load(untrained.of_loss(folder, loss, sampler))
    tokens = np.random.default_rng(0).integers(4, model.tokenizer.vocab_size, (6, 12))
    assert model.bound(tokens).kind == kinds[0]
    for kind in kinds:
        found = likelihood.bound(model, tokens, kind, times=2, steps=2)
        assert found.kind == kind and math.isfinite(found.nats_per_token)
        assert found.nats_per_token > 1.0  # of random tokens and a random network
        assert ("diagonal" in found.label) == (loss == "psd")
        assert json.loads(json.dumps(found.facts()))["text"] == str(found)
    with pytest.raises(UserError, match=f"take auto or {kinds[0]}"):
        model.bound(tokens, "perplexity")


def test_untrained_network_of_equal_logits_pays_ln_v(folder):
    """p is uniform: every bound is ln V at least, and masked diffusion's is that exactly."""
    path = untrained.of_loss(folder / "dumb", "masked_diffusion", "ancestral_masked")
    model = inference.load(path, weights="raw")
    tokens = np.random.default_rng(0).integers(4, model.tokenizer.vocab_size, (6, 12))
    expected = math.log(model.tokenizer.vocab_size)
    assert model.bound(tokens).nats_per_token == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_network_with_self_conditioning_is_told_what_it_said(folder):
    """By the variational bound; the density of the flow is that of the network told nothing."""
    changes: dict[str, Any] = {"model__self_conditioning": True}
    model = inference.load(untrained.of_loss(folder / "told", "flow_matching", "euler", **changes))

    def deafened(path: tuple, x: jax.Array) -> jax.Array:
        return x * 0.0 if any("estimate" in str(key) for key in path) else x

    deaf_params = jax.tree_util.tree_map_with_path(deafened, model.params)
    deaf = FlowModel(model.experiment, model.tokenizer, deaf_params)
    tokens = np.random.default_rng(0).integers(4, model.tokenizer.vocab_size, (6, 12))
    same = {}
    for kind in ("variational", "ode"):
        ways = [likelihood.bound(m, tokens, kind, times=2, steps=2) for m in (model, deaf)]
        assert np.isfinite(ways[0].nats_N).all()
        same[kind] = np.array_equal(ways[0].nats_N, ways[1].nats_N)
    assert same == {"variational": False, "ode": True}


def test_wrong_rows_are_refused_in_a_sentence():
    model, tokens = flow("projected"), ROWS.drawn(8)
    wrong = {
        "token ids \\(N, L\\), L >= 2, not an array \\(4,\\)": tokens[0],
        "not an array \\(8, 1\\)": tokens[:, :1],
        "not an array \\(0, 4\\)": tokens[:0],
        "whole numbers, not float64": tokens * 1.0,
        "the token 3, but the model's are 0 to 2": tokens + 1,
        "the token -1": tokens - 1,
    }
    for sentence, rows in wrong.items():
        with pytest.raises(UserError, match=sentence):
            likelihood.bound(model, rows)
    for options, sentence in (
        ({"times": 0}, "times=0 must be at least 1"),
        ({"steps": 0, "kind": "ode"}, "steps=0 must be at least 1"),
        ({"kind": "exact"}, "kind='exact' is no likelihood of this model \\(denoiser\\)"),
        ({"seed": 1.5}, "seed=1.5 must be a whole number"),
    ):
        with pytest.raises(UserError, match=sentence):
            likelihood.bound(model, tokens, **options)
    padded = FlowModel(model.experiment, Ids(3, pad_id=1), model.params)
    with pytest.raises(UserError, match="no token behind their first one"):
        likelihood.bound(padded, np.array([[0, 1, 1, 1]]))


def test_correction_of_a_denoiser_has_none(folder):
    denoiser = untrained.of_loss(folder / "of", "flow_matching", "euler")
    path = untrained.of_loss(folder / "of", "residual", "two_model", teacher=str(denoiser))
    with pytest.raises(UserError, match="take that of the denoiser that it corrects"):
        inference.load(path).bound(np.full((2, 12), 5))


def evaluated(folder, *words: str) -> dict:
    """What `flm evaluate` writes of an untrained masked diffusion model of words."""
    path = folder / "evaluated"
    if not path.exists():
        untrained.of_loss(path, "masked_diffusion", "ancestral_masked")
    output = path / "results.json"
    words = (f"--checkpoint={path}/masked_diffusion", f"--output={output}", *words)
    assert call("evaluate", "--steps=1", "--num_samples=2", *words) == 0
    return json.loads(output.read_text())


@pytest.mark.slow
def test_command_bounds_held_out_text_and_another_corpus(folder, capsys):
    other = folder / "other.txt"
    other.write_text("\n".join(["dog green dog", "sun two sun cat", "one one one"] * 30))
    results = evaluated(folder, "--bound", "--bound_rows=5", f"--bound_data={other}")
    printed = capsys.readouterr().out
    own, second = results["bounds"]
    assert own["corpus"] == "held-out text" and own["rows"] == 5 and own["kind"] == "masked"
    assert second["corpus"] == str(other) and second["tokens"] == 5 * 11
    for found in (own, second):
        assert found["nats_per_token"] > 1.0 and found["text"].startswith("<= ")
        assert f"{found['corpus']}: {found['text']} nats per token" in printed
    model = inference.load(folder / "evaluated/masked_diffusion")
    rows = second_corpus(model, str(other)).rows["valid"]
    again = likelihood.bound(model, fixed_batch(rows, 5, 0)["tokens"])
    assert again.facts() == {key: second[key] for key in again.facts()}
    assert "perplexity" not in printed.lower() and "ppl" not in printed.lower()
    assert evaluated(folder)["bounds"] == []
    (single,) = evaluated(folder, "--bound", "--bound_rows=1")["bounds"]
    assert single["standard_error"] is None and "±" not in single["text"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--bound_rows=0", "--bound"], "bound_rows=0 must be at least 1"),
        (["--bound", "--bound_data=nowhere.txt"], "nowhere.txt"),
        (["--bound_data=x"], "--bound_data=x needs --bound"),
    ],
)
def test_command_refuses_what_it_cannot_bound(folder, words, sentence, capsys):
    path = folder / "evaluated"
    if not path.exists():
        untrained.of_loss(path, "masked_diffusion", "ancestral_masked")
    assert call("evaluate", f"--checkpoint={path}/masked_diffusion", "--num_samples=2", *words)
    assert sentence in capsys.readouterr().err
