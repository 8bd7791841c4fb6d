"""The kind text: detokenisers, rows, entropy, and perplexity under a tiny GPT-2."""

import numpy as np

from flm_jax.data import detokenize, wrap
from flm_jax.evals import generative_perplexity, gpt2
from flm_jax.lab.parity import networks
from flm_jax.lab.parity.checks import Checks
from flm_jax.lab.parity.goldens import Case, GoldenError

# No records: these are sums of a few float32 numbers (entropy), a two-block network (GPT-2).
ENTROPY32 = 1e-6
NLL32 = 1e-5


def detokenizers(case: Case, checks: Checks) -> None:
    """Every detokeniser on every input, character by character."""
    samples = case.json()
    names = sorted({name for sample in samples for name in sample} - {"input"})
    if not names:
        raise GoldenError("the file holds no detokenised texts")
    for name in names:
        if name not in detokenize.DETOKENIZERS:
            checks.fail(name, "there is no such detokeniser")
            continue
        ours = [detokenize.DETOKENIZERS[name](sample["input"]) for sample in samples]
        checks.exact(name, ours, [sample[name] for sample in samples])


def rows(case: Case, checks: Checks) -> None:
    """Documents wrapped into rows; the recorded lists hold their EOS already."""
    for sample in case.json():
        wrapped = wrap.wrap(
            sample["input_ids"],
            sample["block_size"],
            sample["bos"],
            sample["eos"],
            insert_eos=False,
        )
        ours = [row.tolist() for rows in wrapped for row in rows]
        mask = np.ones_like(ours, dtype=float).tolist()
        checks.exact(sample["name"], ours == sample["blocks"], True)
        checks.exact(f"{sample['name']}: mask", mask == sample["attention_mask"], True)


def entropy(case: Case, checks: Checks) -> None:
    """Entropy of the tokens inside each sample, and the mean over samples."""
    for name, tokens in case.under("in/").items():
        ours = generative_perplexity.sample_entropy(tokens)
        for key, value in (("per_sample", ours), ("mean", ours.mean())):
            expected = case[f"out/{name}/{key}"]
            tolerance = ENTROPY32 * max(1.0, float(np.max(np.abs(expected))))
            checks.close(f"out/{name}/{key}", value, expected, tolerance)


def scorer(case: Case, checks: Checks) -> None:
    """The folder of the tiny GPT-2 loads; its numbers are compared by `perplexity`."""
    checks.exact("loads", gpt2.load(case.path).config.width > 0, True)


def perplexity(case: Case, checks: Checks) -> None:
    """The official generative perplexity, from token ids and from texts."""
    model = gpt2.load(case.other("text/tiny_gpt2").path)
    names = sorted({name.split("/")[0] for name in case.under("in/")})
    with checks.precision(32):
        for name in names:
            _scored(case, checks, model, name)


def _scored(case: Case, checks: Checks, model: gpt2.Scorer, name: str) -> None:
    ids, mask = case[f"in/{name}/input_ids"], case[f"in/{name}/model_attention_mask"]
    batch = int(case[f"out/{name}/batch_size"])
    nlls, valid = case[f"out/{name}/nlls"], case[f"out/{name}/valid"]
    whole = len(nlls)
    mine = np.concatenate(
        [model.nlls(ids[i : i + batch], mask[i : i + batch]) for i in range(0, whole, batch)]
    )
    checks.close(f"out/{name}/nlls", mine, nlls, NLL32 * np.max(nlls))
    ours = generative_perplexity.official_valid(ids[:whole], model.eos_id)
    checks.exact(f"out/{name}/valid", ours, valid)
    log_probs = case[f"out/{name}/model_log_probs"]
    some = len(log_probs)
    mine = gpt2.log_probs(
        model.params, model.config, networks.wide(ids[:some]), networks.wide(mask[:some])
    )
    checks.close(f"out/{name}/model_log_probs", mine, log_probs, NLL32 * np.max(np.abs(log_probs)))
    expected = float(case[f"out/{name}/perplexity"])
    score = generative_perplexity.official_from_ids(model, ids, mask, batch)
    checks.close(f"out/{name}/perplexity", score.perplexity, expected, NLL32 * expected)
    texts = case.entry.get("texts")
    if name == "text" and texts:
        score = generative_perplexity.official(model, texts, ids.shape[1], batch)
        quantity = f"out/{name}/perplexity (from texts)"
        checks.close(quantity, score.perplexity, expected, NLL32 * expected)
