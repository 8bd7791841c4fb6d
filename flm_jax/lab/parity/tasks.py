"""The kind plus_data: rows of tasks with a given part, and what generated answers score."""

import functools
import json
import pathlib
import tempfile

import numpy as np

from flm_jax.data import packing, wrap
from flm_jax.data.tasks import gsm8k, puzzles, sudoku, tinygsm
from flm_jax.evals import program_answers
from flm_jax.lab.parity.checks import Checks
from flm_jax.lab.parity.goldens import Case, GoldenError
from flm_jax.tokenizers import Tokenizer
from flm_jax.tokenizers.gpt2 import Gpt2
from flm_jax.tokenizers.sudoku import SudokuTokens

_SECONDS = 2.0  # for an endless program


def puzzle_rows(case: Case, checks: Checks) -> None:
    """Whole small data sets, through the data set and its packing; the clues as they were drawn."""
    for record in case.json():
        name, seed = record["difficulty"], record["data_seed"]
        counts = {"train": record["num_train"], "valid": record["num_valid"]}
        corpus = sudoku.Sudoku(difficulty=name, seed=seed, **counts)
        recorded = {"train": record["train"], "valid": record["validation"]}
        checks.exact(f"{name}: clues asked", sudoku.CLUES[9][name], record["clues_asked"])
        drawn = puzzles.published(seed, sum(counts.values()), record["clues_asked"])
        clues = [81 - puzzle.count(0) for puzzle, _ in drawn]
        checks.exact(f"{name}: clues", clues, record["clues_in_order_of_generation"])
        with tempfile.TemporaryDirectory() as folder:
            for split, expected in recorded.items():
                order = packing.Order(
                    corpus, SudokuTokens(), split, sudoku.row_length(9), packing="exact"
                )
                rows = packing.prepare_split(order, folder)[0]
                made = rows.batch(slice(None))
                checks.exact(f"{name}: {split}", made["tokens"], expected)
                mask = np.broadcast_to(record["attention_mask"], made["given"].shape)
                checks.exact(f"{name}: {split}, mask", ~made["given"], mask)


def story_rows(case: Case, checks: Checks) -> None:
    """A story per row, cut or padded; padding is given."""
    found = case.json()
    tokenizer = _stand_in(case)
    documents = tokenizer.encode_batch([record["text"] for record in found["cases"]])
    ids = found["bos"], found["eos"], found["pad"]
    rows_NL = np.concatenate(list(wrap.one_per_row(documents, found["length"], *ids, cut=True)))
    checks.exact("input_ids", rows_NL, [record["input_ids"] for record in found["cases"]])
    mask = rows_NL != found["pad"]
    checks.exact("attention_mask", mask, [record["attention_mask"] for record in found["cases"]])


def program_rows(case: Case, checks: Checks) -> None:
    """Question and program in a row, through the data set and its packing."""
    tokenizer = _stand_in(case)
    for number, record in enumerate(case.json()):
        options, length = record["options"], record["length"]
        how = "one_per_row_short" if options["filter_too_long"] else "one_per_row_cut"
        with tempfile.TemporaryDirectory() as folder:
            lines = pathlib.Path(folder) / "examples.jsonl"
            lines.write_text("\n".join(map(json.dumps, record["examples"])))
            corpus = tinygsm.TinyGsm(str(lines), record["separator"], valid_share=0)
            rows = packing.pack(corpus, tokenizer, "train", length, folder, packing=how)
            made = rows.batch(slice(None))
        tokens_NL, given_NL = made["tokens"], made["given"]
        mask_NL = np.ones_like(given_NL) if options["train_on_prompt"] else ~given_NL
        if not options["train_on_pad"]:
            mask_NL = mask_NL & (tokens_NL != record["pad"])
        # The published split: a permutation of what the filter left.
        order = np.random.default_rng(options["val_seed"]).permutation(len(tokens_NL))
        held_out = int(np.ceil(options["val_ratio"] * len(order)))
        for split, chosen in (("validation", order[:held_out]), ("train", order[held_out:])):
            what = f"{number}: {split}"
            expected = [row["input_ids"] for row in record[split]]
            checks.exact(what, tokens_NL[chosen], expected)
            expected = [row["attention_mask"] for row in record[split]]
            checks.exact(f"{what}, mask", mask_NL[chosen], expected)
            prompts = [min(row["prompt_len"], length) for row in record[split]]
            checks.exact(f"{what}, prompt", given_NL[chosen].sum(axis=1), prompts)


def problem_rows(case: Case, checks: Checks) -> None:
    """Prompts of the test set: which are kept, their tokens, and the answers that count."""
    tokenizer = _stand_in(case)
    for number, record in enumerate(case.json()):
        asked = [problem["prompt"] for problem in record["records"]]
        made = gsm8k.prompts(asked, tokenizer, record["length"], record["separator"])
        checks.exact(f"{number}: kept", len(made.kept_N), record["kept"])
        checks.exact(f"{number}: tokens", made.tokens_NL, record["tokens"])
        checks.exact(f"{number}: prompt", made.given_NL.sum(axis=1), record["prompt_len"])
        references = [record["records"][i]["response_ground_truth"] for i in made.kept_N]
        golds = [program_answers.gold(reference) for reference in references]
        checks.exact(f"{number}: gold", golds, record["gold"])


def answers(case: Case, checks: Checks) -> None:
    """Reference -> gold, text -> program -> answer -> verdict."""
    records = case.json()
    texts = [record["generated"] for record in records]
    references = [record["response_ground_truth"] for record in records]
    verdicts = program_answers.score(texts, references, seconds=_SECONDS)
    for name, key in (("gold", "gold"), ("code", "code"), ("answer", "pred"), ("right", "correct")):
        ours = [_typed(vars(verdict)[name]) for verdict in verdicts]
        checks.exact(key, ours, [_typed(record[key]) for record in records])


def _typed(value: object) -> str:
    """4 and 4.0 are two answers; and arrays of text compare whatever it is."""
    return json.dumps(value)


def _stand_in(case: Case) -> Tokenizer:
    """GPT-2's tokenizer, with which the rows were recorded."""
    beside = case.directory.resolve().parent / "data/tokenizers/gpt2"
    tokenizer = _gpt2(str(beside) if beside.is_dir() else "")
    if tokenizer.vocab_size != 50258:
        raise GoldenError(f"the rows need GPT-2's 50,258 tokens, not {tokenizer.vocab_size}")
    return tokenizer


_gpt2 = functools.cache(Gpt2.read)
