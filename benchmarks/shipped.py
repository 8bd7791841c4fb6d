"""Whether a shipped model's texts are good enough: likelihood, words, and runs of four words.

    flm generate --checkpoint=RUN --steps=8,32 --num_samples=512 --output=samples.jsonl
    python benchmarks/shipped.py stories260K.bin FRESH.jsonl TRAIN.jsonl samples.jsonl ...

FRESH are texts of the source that nobody was trained on (benchmarks/story_texts.py of rows with
another seed); a million words of them are read. Prints, for every file and number of steps:

* nats a character under the source;
* the share of words, and of runs of four words, that occur in the fresh words;
* distinct-4: of all runs of four words, how many are different; the same for fresh texts is
  printed from as many of them;
* the share of runs of eight words that occur in the training text.
"""

import json
import pathlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence

from flm_jax.evals.judged import score_texts
from flm_jax.inference.truths import load_truth

FRESH_WORDS = 1_000_000
COPIED = 8  # words
ACCEPTED = {"nats": 0.71, "words": 0.98, "grams": 0.55}


def runs(texts: Iterable[str], length: int) -> Iterable[tuple[str, ...]]:
    for text in texts:
        words = text.split()
        yield from zip(*(words[i:] for i in range(length)), strict=False)


def share(found: Iterable[object], known: set) -> float:
    listed = list(found)
    return sum(one in known for one in listed) / len(listed) if listed else float("nan")


def read(path: str) -> dict[str, list[str]]:
    """The texts of a file of `flm generate` by number of steps, or of JSON lines."""
    by_steps = defaultdict(list)
    for line in pathlib.Path(path).read_text("utf-8").splitlines():
        row = json.loads(line)
        by_steps[f"{pathlib.Path(path).stem} {row.get('sampler_steps', '')}".strip()].append(
            row["text"]
        )
    return by_steps


def fresh_texts(path: str) -> tuple[list[str], list[str]]:
    """(texts of a million words, texts after them)."""
    (texts,) = read(path).values()
    words = 0
    for number, text in enumerate(texts):
        words += len(text.split())
        if words >= FRESH_WORDS:
            return texts[: number + 1], texts[number + 1 :]
    raise SystemExit(f"{path} has {words:,} words; {FRESH_WORDS:,} and some texts more are needed")


def main(truth_path: str, fresh_path: str, train_path: str, *samples: str) -> None:
    truth = load_truth(truth_path)
    fresh, rest = fresh_texts(fresh_path)
    words, grams = set(runs(fresh, 1)), set(runs(fresh, 4))
    copied = set(runs(next(iter(read(train_path).values())), COPIED))
    sets = {name: texts for path in samples for name, texts in read(path).items()}
    count = max((len(texts) for texts in sets.values()), default=512)
    print(
        "| | texts | words a text | nats / character | known words | known 4-grams | distinct-4 "
        "| copied |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, texts in {**sets, "fresh texts": rest[:count]}.items():
        values = measured(truth, texts, words, grams, copied)
        passed = (
            values["nats"] <= ACCEPTED["nats"]
            and values["words"] >= ACCEPTED["words"]
            and values["grams"] >= ACCEPTED["grams"]
        )
        cells = (
            f"{len(texts)}",
            f"{sum(len(text.split()) for text in texts) / len(texts):.1f}",
            f"{values['nats']:.3f}",
            f"{values['words']:.1%}",
            f"{values['grams']:.1%}",
            f"{values['distinct']:.2f}",
            f"{values['copied']:.1%}",
        )
        print(f"| {name}{' (accepted)' if passed else ''} | {' | '.join(cells)} |", flush=True)


def measured(truth, texts: Sequence[str], words: set, grams: set, copied: set) -> dict[str, float]:
    nats, characters = score_texts(truth, [text for text in texts if text])
    own = list(runs(texts, 4))
    return {
        "nats": nats / characters,
        "words": share(runs(texts, 1), words),
        "grams": share(own, grams),
        "distinct": len(set(own)) / max(len(own), 1),
        "copied": share(runs(texts, COPIED), copied),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
