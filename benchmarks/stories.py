"""Table and plots of the landmarks on stories, from what benchmarks/stories.sh left in a folder.

    python benchmarks/stories.py /tmp/landmarks

Prints the Markdown table and the verdicts, and writes stories_*.svg beside this file. Needs
matplotlib.
"""

import json
import pathlib
import random
import sys
from collections import defaultdict

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from flm_jax.data.rows import Rows
from flm_jax.evals import verdict
from flm_jax.evals.judged import score_texts
from flm_jax.inference.truths import load_truth

HERE = pathlib.Path(__file__).parent
NAMES = {
    "ar": "autoregressive",
    "mdlm": "masked diffusion, random order",
    "mdlm_confidence": "masked diffusion, most confident position first",
    "mdlm_drawn": "masked diffusion, most confident draw first",
    "flm": "FLM, Euler",
    "flm_fresh": "FLM, fresh noise in every step",
    "fast_fresh": "FLM with given tokens, fresh noise in every step",
    "fast": "FLM with given tokens, at most 16 rounds of commits",
    "fast_64": "FLM with given tokens, a round for every evaluation",
    "fmlm": "FMLM (flow map of that FLM)",
}
COLUMNS = {
    "judge_nats": "nats / token",
    "judge_nats_per_character": "nats / character",
    "distinct_4": "distinct-4",
    "sample_entropy": "entropy in a sample",
    "held_out_nats": "held-out nats",
    "copied": "copied",
}


def minutes(workdir: pathlib.Path) -> dict[int, float]:
    """Training time in minutes of this run by step, saving and held-out evaluations included."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    start = rows[0]["time"] - rows[0]["step"] * 64 * 65 / rows[0].get("tokens_per_second", 1e9)
    return {row["step"]: (row["time"] - start) / 60 for row in rows}


def of_words(folder: pathlib.Path) -> dict[str, float]:
    """Nats per character, under the truth, of texts made of real words in a wrong order."""
    kept = folder / "rows/rows"
    found = [next(kept.glob(f"truth-{split}-*/manifest.json")) for split in ("train", "valid")]
    train, valid = (Rows(p.parent, json.loads(p.read_text())) for p in found)
    truth = load_truth(train.manifest["truth_path"])
    texts = [truth.tokenizer.decode(row.tolist()) for row in valid[:192]]
    draw = random.Random(0)
    shuffled = [" ".join(draw.sample(words := text.split(), len(words))) for text in texts]
    after = defaultdict(list)
    for row in train[:20_000]:
        words = ["", *truth.tokenizer.decode(row.tolist()).split()]
        for word, following in zip(words, words[1:], strict=False):
            after[word].append(following)
    bigrams = []
    for text in texts:
        words = [draw.choice(after[""])]
        while len(words) < len(text.split()) and after[words[-1]]:
            words.append(draw.choice(after[words[-1]]))
        bigrams.append(" ".join(words))
    named = {"real words shuffled": shuffled, "word-bigram sampler": bigrams, "held-out": texts}
    scores = {name: score_texts(truth, made) for name, made in named.items()}
    return {name: nats / characters for name, (nats, characters) in scores.items()}


def main() -> None:
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text
    folder = pathlib.Path(sys.argv[1])
    found = {p.stem: json.loads(p.read_text()) for p in sorted((folder / "json").glob("*.json"))}
    first = found["flm"]["rows"]
    real = [row for row in first if row["kind"] == "data"][-1]
    truth = verdict.Point("truth", real["values"]["judge_nats"], real["values"][verdict.DIVERSITY])
    curves: dict[str, list[tuple[int, verdict.Point]]] = {}
    print("| | evaluations | " + " | ".join(COLUMNS.values()) + " |")
    print("|---|---:|" + "---:|" * len(COLUMNS))
    for name, title in NAMES.items():
        for row in found.get(name, {"rows": []})["rows"]:
            if row["kind"] != "model":
                continue
            values = row["values"]
            point = verdict.Point(title, values["judge_nats"], values[verdict.DIVERSITY])
            curves.setdefault(name, []).append((row["steps"], point))
            print(f"| {title} | {row['steps']} | " + cells(values) + " |")
    for row in first:
        if row["kind"] != "model":
            print(f"| {row['name']} | | " + cells(row["values"]) + " |")
    for name, nats in of_words(folder).items():
        print(f"| {name}, as text | | – | {nats:.2f} | – | – | – | – |")
    print()
    for name, points in curves.items():
        for steps, point in points:
            print(f"* {NAMES[name]}, {steps} evaluations: {verdict.sentence(point, truth)}")
    matched = {NAMES[name]: [point for _, point in points] for name, points in curves.items()}
    print(f"\nbest at matched diversity: {verdict.best(matched, truth)}")

    figure, axes = start("network evaluations", truth)
    for name, points in curves.items():
        axes.plot([n for n, _ in points], [p.nats for _, p in points], "o-", label=NAMES[name])
    axes.set_xscale("log", base=2)
    save(figure, axes, "stories_evaluations.svg")

    figure, axes = start("distinct-4 between samples", truth)
    band = truth.diversity - verdict.MATCHED, truth.diversity + verdict.MATCHED
    axes.axvspan(*band, color="0.92", label="as diverse as the truth")
    for name, points in curves.items():
        axes.plot(
            [p.diversity for _, p in points], [p.nats for _, p in points], "o-", label=NAMES[name]
        )
        for n, p in points:
            axes.annotate(str(n), (p.diversity, p.nats), textcoords="offset points", xytext=(4, 4))
    axes.plot([truth.diversity], [truth.nats], "k*", markersize=12)
    save(figure, axes, "stories_diversity.svg")

    figure, axes = start("minutes of training on one core", truth)
    for name in ("ar", "mdlm", "flm", "fast"):
        if not (folder / name / "metrics.jsonl").exists() or name not in curves:
            continue
        taken = minutes(folder / name)
        points = []
        for stem, results in found.items():
            if stem.startswith(f"{name}@"):
                step = int(stem.split("@")[1])
                points.append((taken[step], results["rows"][0]["values"]["judge_nats"]))
        whole = [p.nats for n, p in curves[name] if n == 32 or name == "ar"]
        points.append((taken[max(taken)], whole[0]))
        axes.plot(*zip(*sorted(points), strict=True), "o-", label=NAMES[name])
        print(f"{NAMES[name]}: {taken[max(taken)]:.1f} minutes for {max(taken)} steps")
    save(figure, axes, "stories_minutes.svg")


def cells(values: dict) -> str:
    shown = (values.get(key) for key in COLUMNS)
    return " | ".join("–" if value is None else f"{value:.2f}" for value in shown)


def start(label: str, truth: verdict.Point):
    figure, axes = plt.subplots(figsize=(10, 4.2))
    axes.axhline(truth.nats, color="0.4", linestyle=":", label="fresh truth")
    axes.set_xlabel(label)
    axes.set_ylabel("nats per token under the truth")
    return figure, axes


def save(figure, axes, name: str) -> None:
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(HERE / name, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
