"""Tables of benchmarks/guidance.md: guides and rewards on addition, where the truth is known.

    python benchmarks/guidance.py guides WORKDIR WEAKER --sampler=euler --steps=32
    python benchmarks/guidance.py inside WORKDIR --steps=32
    python benchmarks/guidance.py given WORKDIR --steps=8
    python benchmarks/guidance.py reward WORKDIR --sampler=churn --steps=32

WORKDIR is a run of configs/proof.py:addition,..., WEAKER what --guide takes, such as WORKDIR@1000.
"""

import argparse
import collections

import jax.numpy as jnp
import numpy as np

import flm_jax
from flm_jax.data.synthetic import LANGUAGES
from flm_jax.evals import truth

LANGUAGE = LANGUAGES["addition"]()
SAMPLES = 1024
LAST_DIGIT = 6  # position of the sum's last digit, after BOS and "7+5=1"
WANTED = "7"


def row(name, model, samples):
    """One line: validity, distance to the truth, entropy of the texts, share of the wanted ones."""
    texts = truth.documents(samples.tokens, model.tokenizer)
    found = truth.measure(LANGUAGE, texts)
    valid = [text for text in texts if text is not None and LANGUAGE.contains(text)]
    counts = np.array([*collections.Counter(valid).values()]) / max(1, len(valid))
    entropy = -float((counts * np.log(counts)).sum())
    wanted = sum(text.endswith(WANTED) for text in valid) / len(texts)
    cells = (
        f"{100 * found['valid']:.1f}",
        f"{found['total_variation']:.2f} ({found['total_variation_noise']:.2f})",
        f"{entropy:.2f}",
        f"{100 * found['coverage']:.0f}",
        f"{100 * wanted:.1f}",
        f"{samples.evaluations:.0f}" + f" + {samples.gradients:.0f} back" * (samples.gradients > 0),
    )
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def wanted(model):
    """log p of the wanted digit at the end of the sum."""
    [token] = model.tokenizer.encode(WANTED)

    def reward(ending):
        return jnp.log(ending.probability([token])[:, LAST_DIGIT] + 1e-6)

    return reward


def given(model, options):
    """The share of right sums of given operands, by the scale of guidance towards them."""
    rng = np.random.default_rng(0)
    prompts = [f"{a}+{b}=" for a, b in rng.integers(10, size=(256, 2))]
    for scale in (1.0, 1.5, 2.0, 4.0, 8.0):
        guide = {"guide": "nothing_given", "guidance": scale}
        texts = model.generate(1, prompt=prompts, **guide, **options).texts
        print(f"| {scale:g} | {100 * np.mean([LANGUAGE.contains(text) for text in texts]):.1f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("guides", "inside", "given", "reward"))
    parser.add_argument("workdir")
    parser.add_argument("weaker", nargs="?")
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--gamma", type=float)
    asked = parser.parse_args()
    model = flm_jax.load(asked.workdir)
    options = {"steps": asked.steps, "sampler": asked.sampler, "gamma": asked.gamma}
    if asked.what == "given":
        given(model, options)
        return

    def draw(name, **knobs):
        row(name, model, model.generate(SAMPLES, batch_size=SAMPLES, **options, **knobs))

    draw("none")
    if asked.what == "reward":
        for knob, values in {
            "reward_scale": (0.3, 1.0, 3.0, 10.0, 30.0),
            "reward_length": (1.0, 3.0, 6.0),
        }.items():
            reward = wanted(model)
            for value in values:
                draw(f"{knob} {value:g}", reward=reward, **{knob: value})
        return
    guides = ["dropout", asked.weaker] if asked.what == "guides" else ["no_estimate"]
    for guide in guides:
        for scale in (1.5, 2.0, 5.0, 50.0):
            draw(f"{guide.rpartition('/')[2]}, w = {scale:g}", guide=guide, guidance=scale)


if __name__ == "__main__":
    main()
