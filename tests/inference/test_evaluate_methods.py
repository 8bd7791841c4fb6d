"""Any workdir gets a verdict: every kind of model, a known truth, languages, official files."""

from unittest.mock import Mock

import numpy as np
import official_files
import pytest
import tiny
import untrained

from flm_jax.data import load_data
from flm_jax.errors import UserError
from flm_jax.evals import comparison, ngram
from flm_jax.inference.evaluation import evaluate
from flm_jax.options import Evaluation
from flm_jax.tokenizers.characters import Characters

GROUP = 48
LANGUAGE = {
    "name": "synthetic",
    "length": 8,
    "packing": "one_per_row",
    "options": {"language": "addition", "documents": 300, "held_out": 200},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("methods")


@pytest.fixture(scope="module")
def denoiser(folder):
    return untrained.of_loss(folder, "flow_matching", "euler")


def measured(run, **options):
    given = {"checkpoint": str(run), "num_samples": GROUP, "batch_size": GROUP, **options}
    return evaluate(Evaluation(**given))


@pytest.mark.parametrize(
    ("loss", "sampler", "steps"),
    [
        ("flow_matching", "euler", 2),
        ("psd", "flow_map", 1),
        ("masked_diffusion", "ancestral_masked", 2),
        ("uniform_diffusion", "ancestral_uniform", 2),
        ("residual", "two_model", 1),
    ],
)
def test_every_kind_of_model_gets_a_verdict(loss, sampler, steps, folder, denoiser, capsys):
    changes = {"teacher": str(denoiser)} if loss in ("psd", "residual") else {}
    run = denoiser
    if loss != "flow_matching":
        run = untrained.of_loss(folder, loss, sampler, **changes)
    results = measured(run, steps=(steps,))
    assert results["judge"] == "a 3-gram model" and results["truth"] is None
    keys = [column["key"] for column in results["columns"]]
    assert keys[:2] == ["judge_nats", "distinct_4"] and len(set(keys)) == len(keys)
    said, ranges = results["verdict"]
    assert ranges == "no range of real text: two halves of 48 rows need 96, and there are 48"
    assert said.startswith(f"{steps} step") and "nats a token (real text " in said
    assert f"\n{said}\n" in capsys.readouterr().out
    values = results["rows"][0]["values"]
    assert values["judge_nats"] > 0 and 0 < values["distinct_4"] <= 1


def test_an_autoregressive_run_that_is_its_own_truth_is_as_good_as_real_text(folder):
    run = untrained.of_loss(folder, "autoregressive", "autoregressive")
    own = measured(run, steps=(11,), truth=str(run), seed=5)
    assert own["truth"] == own["judge"] == "autoregressive"
    rows = {row["name"]: row["values"] for row in own["rows"]}
    # it writes what it is judged by, with other random numbers
    assert rows["11 steps"]["judge_nats"] == pytest.approx(rows["fresh truth"]["judge_nats"], 0.05)
    assert "as diverse as real text" in own["verdict"][0]


def test_a_truth_with_other_tokens_compares_characters(denoiser, folder):
    (folder / "other").mkdir()
    other = folder / "other" / "text.txt"
    lines = (f"the quick brown fox jumps over {i} lazy dogs" for i in range(200))
    other.write_text("\n".join(lines))
    options = {"path": str(other)}
    data = {"name": "text_files", "length": 9, "options": options, "cache_dir": str(folder / "o")}
    truth = untrained.of_loss(folder / "other", "autoregressive", "autoregressive", data=data)
    results = measured(denoiser, steps=(1,), truth=str(truth))
    keys = [column["key"] for column in results["columns"]]
    assert keys[:2] == ["judge_nats_per_character", "distinct_4"] and "judge_nats" not in keys
    assert "fresh truth" not in {row["name"] for row in results["rows"]}
    assert "nats a character (real text " in results["verdict"][0]


def test_a_truth_of_shorter_rows_is_refused_before_there_are_samples():
    truth = Mock(longest=12, tokenizer=Characters("xy"))
    truth.name = "short"
    with pytest.raises(UserError, match="short knows rows of at most 12 tokens, but the model wri"):
        comparison.Comparison(Characters("xy"), 20, None, truth, [])
    comparison.Comparison(Characters("xyz"), 20, None, truth, [])  # cut to what it reads
    truth.tokenizer = Mock(bos_id=None, eos_id=None, fingerprint="other")
    with pytest.raises(UserError, match="has neither BOS nor EOS to begin a text with"):
        comparison.Comparison(Characters("xy"), 20, None, truth, [])


def test_a_language_is_its_own_judge(folder):
    data = {**LANGUAGE, "cache_dir": str(folder / "cache")}
    run = untrained.of_loss(folder / "synthetic", "flow_matching", "euler", data=data)
    results = measured(run, steps=(1,))
    assert results["judge"] == "the language addition"
    rows = {row["name"]: row["values"] for row in results["rows"]}
    # ln 100 nats for six characters and EOS, and a thousandth for what is no document
    exact = (np.log(100) + 1e-3) / 7
    assert rows["held-out data"]["judge_nats"] == pytest.approx(exact, abs=1e-5)
    assert rows["1 step"]["judge_nats"] > 2 and rows["1 step"]["valid"] == 0
    assert {"product of marginals", "markov sampler"} <= set(rows)
    assert results["verdict"][0].startswith("1 step: ")


def test_an_official_checkpoint_without_text_says_why_there_is_none(tmp_path):
    path, _ = official_files.hub(tmp_path / "hub")
    tokenizer = official_files.saved_letters(tmp_path / "letters")
    results = measured(path, steps=(1,), tokenizer=tokenizer)
    why = "there is no training text and no --truth, so no judge and no real text"
    assert results["verdict"] == [f"no verdict: {why}"]
    assert results["rows"][0]["values"]["distinct_4"] is not None


@pytest.mark.parametrize(
    ("count", "judge", "why"),
    [
        (5, True, "distinct-4 compares 48 samples with each other, and there are 5"),
        (48, False, "the truth has other tokens, so there is no real text to compare with"),
    ],
)
def test_reasons_for_no_verdict(count, judge, why, folder):
    data = load_data(tiny.run_config(folder).data, {"name": "characters"})
    tokens = np.tile(data.rows["train"][:1], (count, 1))
    truth = None if judge else ngram.fit(np.array([[1, 4, 5]]), 1, Characters("xy"))
    text = data if judge else None
    compared = comparison.Comparison(data.tokenizer, 12, text, truth, [])
    written = comparison.Written("1 step", 1, tokens, 1.0)
    assert compared.table([written])["verdict"] == [f"no verdict: {why}"]
