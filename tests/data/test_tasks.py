"""Tasks with a given part: Sudoku by its rules, questions by their files, and rows that tell it."""

import gzip
import itertools
import json
import random

import numpy as np
import pytest

from flm_jax import data, errors, tokenizers
from flm_jax.data import packing, pipeline, workers
from flm_jax.data.base import MemoryCorpus
from flm_jax.data.tasks import gsm8k, puzzles, questions, sudoku, tinygsm
from flm_jax.tokenizers.characters import Characters
from flm_jax.tokenizers.sudoku import BOS, SudokuTokens

SMALL = puzzles.all_solutions(4)
LETTERS = Characters("".join(sorted(set(map(chr, range(32, 127))) | {"\n"})))


def test_all_grids_of_size_4():
    assert len(SMALL) == len(set(SMALL)) == 288
    assert all(puzzles.is_solution(grid, 4) for grid in SMALL)
    assert puzzles.random_solution(random.Random(3), 4) in SMALL
    wrong = (SMALL[0][1], SMALL[0][0], *SMALL[0][2:])  # rows are right, columns are not
    assert not puzzles.is_solution(wrong, 4)
    assert not puzzles.is_solution((*SMALL[0][:-1], 0), 4)


@pytest.mark.parametrize("clues", [4, 7, 10])
def test_a_puzzle_has_one_solution_and_as_few_clues_as_asked(clues):
    generator = random.Random(clues)
    for solution in generator.sample(SMALL, 12):
        puzzle = puzzles.dig(generator, solution, clues, 4)
        assert [grid for grid in SMALL if puzzles.keeps(grid, puzzle)] == [solution]
        left = [i for i, digit in enumerate(puzzle) if digit]
        assert len(left) >= clues
        if len(left) > clues:  # then no clue can go
            for i in left:
                less = (*puzzle[:i], 0, *puzzle[i + 1 :])
                assert sum(puzzles.keeps(grid, less) for grid in SMALL) > 1


def count_solutions(cells: list[int]) -> int:
    """Of size 9, by trying: cells in order, rules written out."""
    if 0 not in cells:
        return 1
    at = cells.index(0)
    row, column = divmod(at, 9)
    corner = row // 3 * 27 + column // 3 * 3
    box = [corner + 9 * i + j for i in range(3) for j in range(3)]
    taken = {*cells[9 * row : 9 * row + 9], *cells[column::9], *(cells[i] for i in box)}
    return sum(
        count_solutions([*cells[:at], digit, *cells[at + 1 :]]) for digit in {*range(1, 10)} - taken
    )


def test_a_puzzle_of_size_9():
    puzzle, solution = puzzles.puzzle(seed=42, clues=40)
    assert puzzles.is_solution(solution, 9) and puzzles.keeps(solution, puzzle)
    assert 81 - puzzle.count(0) == 40 and count_solutions([*puzzle]) == 1
    # As the public code draws it.
    assert solution[:18] == (4, 8, 3, 9, 5, 7, 2, 6, 1, 9, 1, 5, 3, 6, 2, 7, 4, 8)


def test_solutions_that_were_drawn_already_are_left_out(monkeypatch):
    monkeypatch.setattr(puzzles, "puzzle", lambda seed, clues: ((seed,), (seed // 2,)))
    assert list(puzzles.published(4, 3, 0)) == [((4,), (2,)), ((6,), (3,)), ((8,), (4,))]


def test_published_rows(tmp_path):
    corpus = sudoku.Sudoku(difficulty="hard", train=2, valid=1)
    order = packing.Order(corpus, SudokuTokens(), "train", 180, packing="exact")
    batch = packing.prepare_split(order, tmp_path)[0].batch(slice(None))
    assert batch["tokens"].shape == (2, 180) and set(np.flatnonzero(batch["tokens"][0] == BOS)) == {
        0,
        90,
    }
    assert batch["given"][:, :91].all() and not batch["given"][:, 91:].any()
    assert sudoku.score(batch["tokens"], None, 9).right.all()
    (puzzle, solution) = sudoku.read_row(batch["tokens"][0], 9)
    assert solution is not None and count_solutions([*puzzle]) == 1 and puzzle.count(0) == 51


def test_held_out_grids_of_size_4_are_nowhere_in_training():
    corpus = sudoku.Sudoku(size=4, difficulty="easy", train=300, valid=40)
    solutions = {
        split: {text.partition("=")[2] for text in corpus.source(split)} for split in corpus.splits
    }
    assert len(solutions["train"]) == 256 and len(solutions["valid"]) == 32
    assert not solutions["train"] & solutions["valid"]
    assert len(set(corpus.source("train"))) > 290  # a grid comes with several puzzles
    assert sudoku.Sudoku(size=4, difficulty="easy", train=300, valid=40, seed=1).source(
        "valid"
    ) != corpus.source("valid")


def test_grids_alone(tmp_path):
    corpus = sudoku.Sudoku(size=4, train=300, valid=40, form="grids")
    rows = data.pack(corpus, SudokuTokens(), "valid", 20, tmp_path, packing="exact")
    assert "given" not in rows.batch(slice(0, 2)) and not rows.has_given
    assert sudoku.score(rows[:], None, 4, "grids").right.all()
    solution = sudoku.read_row(rows[0], 4, "grids")[1]
    assert solution is not None
    puzzle = (*solution[:8], *[0] * 8)
    kept = sudoku.score(rows[:], [puzzle] * len(rows), 4, "grids").kept
    assert kept[0] and not kept.all()


def test_what_is_wrong_with_a_row_is_told():
    solution = SMALL[7]
    text = sudoku.grid_text((*solution[:6], *[0] * 10), 4) + "=" + sudoku.grid_text(solution, 4)
    row = np.array([BOS, *SudokuTokens().encode(text)])
    other = np.array([BOS, *SudokuTokens().encode(text[:20] + sudoku.grid_text(SMALL[200], 4))])
    swapped, ended, blank = row.copy(), row.copy(), row.copy()
    swapped[[21, 22]] = swapped[[22, 21]]
    ended[25] = 1  # a row's end
    blank[21] = 0
    scores = sudoku.score(np.array([row, swapped, ended, blank, other]), None, 4)
    assert scores.legal.tolist() == [True, True, False, False, True]
    assert scores.valid.tolist() == [True, False, False, False, True]
    assert scores.kept.tolist() == [True, False, False, False, False]
    assert scores.right.tolist() == [True, False, False, False, False]
    asked = [(*SMALL[200][:6], *[0] * 10)] * 5  # not the puzzles that the rows show
    assert sudoku.score(np.array([row] * 4 + [other]), asked, 4).right.tolist() == [*[False] * 4, 1]


def test_sudoku_tokens(tmp_path):
    tokenizer = SudokuTokens()
    text = "10\n02=12\n21"
    assert tokenizer.encode(text) == [1, 0, 10, 0, 2, 11, 1, 2, 10, 2, 1]
    assert tokenizer.decode([BOS, *tokenizer.encode(text)]) == text
    tokenizer.save(tmp_path)
    assert tokenizers.load(tmp_path).fingerprint == tokenizer.fingerprint
    with pytest.raises(errors.UserError, match="'x' is no character of a Sudoku"):
        tokenizer.encode("1x")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"size": 6}, "options.size is 6, but of data set 'sudoku' it is 4 or 9"),
        ({"difficulty": "cruel"}, "'cruel', but of data set 'sudoku' it is easy or medium or hard"),
        ({"form": "rows"}, "'rows', but .* pairs or grids"),
        ({"train": 0}, "options.train is 0, but must be at least 1"),
        ({"seed": -1}, "options.seed is -1"),
    ],
)
def test_bad_sudoku_options(options, sentence):
    with pytest.raises(errors.UserError, match=sentence):
        sudoku.Sudoku(**options)


class Sums(MemoryCorpus):
    """ "3+4=7": the left side is given."""

    name = kind = licence = "sums"
    splits = ("train",)
    has_given = True

    def read(self) -> dict[str, list[str]]:
        return {"train": [f"{a}+{b}={a + b}" for a in range(20) for b in range(20)]}

    def parts(self, text: str) -> tuple[str, ...]:
        left, between, right = text.partition("=")
        return left + between, right


def left_sides(rows_NL: np.ndarray, tokenizer) -> list[int]:
    """Tokens up to and including "=", by looking."""
    return [row.tolist().index(tokenizer.encode("=")[0]) + 1 for row in rows_NL]


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sums")
    return data.pack(Sums(), LETTERS, "train", 12, folder, packing="one_per_row")


def test_batches_tell_what_is_given(sums):
    for given_L, left in zip(
        sums.batch(slice(None))["given"], left_sides(sums[:], LETTERS), strict=True
    ):
        assert given_L.tolist() == [True] * left + [False] * (12 - left)
    parts = [pipeline.Batches(sums, 8, 0, index, 2) for index in range(2)]
    whole = next(pipeline.Batches(sums, 8, 0))
    halves = [next(part) for part in parts]
    for key in ("tokens", "given"):
        np.testing.assert_array_equal(whole[key], np.concatenate([half[key] for half in halves]))
    assert whole["given"].sum(axis=1).tolist() == left_sides(whole["tokens"], LETTERS)
    fixed = pipeline.fixed_batch(sums, 6, 0)
    assert fixed["given"].sum(axis=1).tolist() == left_sides(fixed["tokens"], LETTERS)
    assert sums[3].shape == (12,) and sums[:4].shape == (4, 12)


def test_prepared_rows_tell_it_too(sums):
    section = {"name": "prepared", "length": 12, "packing": "one_per_row"}
    loaded = data.load_data(section | {"options": {"path": str(sums.path)}}, {}, splits=["train"])
    assert loaded.rows["train"].has_given


def test_rows_without_a_given_part_are_what_they_were(tmp_path):
    class Plain(Sums):
        has_given = False

        def parts(self, text):
            return (text,)

    rows = data.pack(Plain(), LETTERS, "train", 12, tmp_path, packing="one_per_row")
    assert "given" not in rows.manifest and rows.columns == 12
    assert set(next(pipeline.Batches(rows, 4, 0))) == {"tokens"}


def test_pieces_are_tokenised_one_by_one():
    class Pairs(Characters):
        """A tokenizer that would join what stands at the border of two pieces."""

        def encode_batch(self, texts):
            return [[int(text[i : i + 2]) for i in range(0, len(text), 2)] for text in texts]

    encode = workers.Encode(Pairs("0"), lambda text: tuple(text.split()), (99,), np.dtype("int32"))
    made = encode(workers.Chunk(0, ["123 45 67", "8"]))
    assert made.stream.tolist() == [12, 3, 45, 67, 99, 8, 99]
    assert made.lengths.tolist() == [5, 2] and made.given.tolist() == [3, 0]


def test_too_long_documents_are_cut_or_left_out(tmp_path):
    def made(how):
        return data.pack(Sums(), LETTERS, "train", 7, tmp_path, packing=how).batch(slice(None))

    with pytest.raises(errors.UserError, match="'0\\+10=10' .* has 7 tokens, too many"):
        made("one_per_row")
    cut, short = made("one_per_row_cut"), made("one_per_row_short")
    lengths = np.array([len(text) for text in Sums().source("train")])
    assert len(cut["tokens"]) == 400 and len(short["tokens"]) == (lengths <= 5).sum()
    for key in ("tokens", "given"):
        np.testing.assert_array_equal(short[key], cut[key][lengths <= 5])
    (cut_row,) = np.flatnonzero(np.array(Sums().source("train")) == "11+12=23")
    assert LETTERS.decode(cut["tokens"][cut_row]) == "11+12"
    assert cut["given"][cut_row].all()  # nothing of the answer is left
    with pytest.raises(errors.UserError, match="each of the 400 .* so all are left out"):
        data.pack(Sums(), LETTERS, "train", 6, tmp_path, packing="one_per_row_short")


def test_a_kill_loses_and_doubles_no_row_where_some_are_left_out(tmp_path, monkeypatch):
    """The place that a shard notes is a document, and rows are fewer than documents."""

    def made(folder):
        return data.pack(Sums(), LETTERS, "train", 7, folder, packing="one_per_row_short")

    whole = made(tmp_path / "whole")
    monkeypatch.setattr(packing.shards, "SHARD_BYTES", 7 * 2 * 10)
    monkeypatch.setattr(workers, "DOCUMENTS", 64)
    with monkeypatch.context() as patch:
        right = workers.Encode.__call__

        def interrupted(self, chunk):
            if chunk.first >= 128:
                raise KeyboardInterrupt
            return right(self, chunk)

        patch.setattr(workers.Encode, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path / "parts")
    parts = made(tmp_path / "parts")
    assert len(parts.manifest["shards"]) > 5
    np.testing.assert_array_equal(parts.stored(slice(None)), whole.stored(slice(None)))


@pytest.mark.parametrize(
    ("how", "length", "sentence"),
    [
        ("exact", 7, "document 0 .* has 5 tokens, but with data.packing=exact .* all have 6"),
        ("wrap", 7, "begin with a given part, .* set data.packing=one_per_row"),
    ],
)
def test_packings_that_do_not_fit(tmp_path, how, length, sentence):
    with pytest.raises(errors.UserError, match=sentence):
        data.pack(Sums(), LETTERS, "train", length, tmp_path, packing=how)


ASKED = [("  Two plus two? ", "def simple_math_problem():\n    return 4\n"), ("One?", "x = 1")]


def write_lines(path, records, keys=("question", "code")):
    text = "".join(json.dumps(dict(zip(keys, record, strict=True))) + "\n" for record in records)
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as file:
        file.write(text)
    return str(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_tinygsm_rows(tmp_path, name):
    corpus = tinygsm.TinyGsm(write_lines(tmp_path / name, ASKED), valid_share=0)
    assert list(corpus.pairs("train")) == [(q.strip(), c.strip()) for q, c in ASKED]
    rows = data.pack(corpus, LETTERS, "train", 64, tmp_path, packing="one_per_row_short")
    batch = rows.batch(slice(None))
    given = [LETTERS.decode(row[mask]) for row, mask in zip(*batch.values(), strict=True)]
    assert given == ["Two plus two?\\n", "One?\\n"]
    assert LETTERS.decode(batch["tokens"][1]) == "One?\\nx = 1"
    broken = tinygsm.TinyGsm(str(tmp_path / name), separator="\n", valid_share=0)
    assert broken.fingerprint("train") != corpus.fingerprint("train")
    assert broken.detokenize(broken.source("train")[1]) == "One?\nx = 1"


def test_a_share_of_the_questions_is_held_out(tmp_path):
    many = [(f"Is {i} a number?", f"x = {i}") for i in range(2000)]
    path = write_lines(tmp_path / "many.jsonl", many)
    corpus = tinygsm.TinyGsm(path, valid_share=0.1)
    sides = {split: set(corpus.pairs(split)) for split in corpus.splits}
    assert not sides["train"] & sides["valid"] and set(many) == sides["train"] | sides["valid"]
    assert 150 < len(sides["valid"]) < 250
    less = tinygsm.TinyGsm(path, valid_share=0.05)
    assert set(less.pairs("valid")) < sides["valid"]  # nobody changes sides for more than that


def test_tinygsm_from_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    questions_, programs = zip(*ASKED, strict=True)
    table = pyarrow.table({"question": questions_, "code": programs, "other": ["", ""]})
    parquet.write_table(table, tmp_path / "train-00000-of-00001.parquet")
    corpus = tinygsm.TinyGsm(str(tmp_path), valid_share=0)
    assert list(corpus.pairs("train")) == [(q.strip(), c.strip()) for q, c in ASKED]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 2 is no JSON object with texts under 'question' and 'code'"),
        ("[]", "line 2 is no JSON object"),
        ('{"question": "a", "code": 3}', "line 2 is no JSON object"),
    ],
)
def test_bad_lines(tmp_path, line, sentence):
    path = tmp_path / "a.jsonl"
    write_lines(path, ASKED[:1])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(errors.UserError, match=sentence):
        list(tinygsm.TinyGsm(str(path), valid_share=0).source("train"))


def test_bad_options_of_questions(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", ASKED)
    with pytest.raises(errors.UserError, match="options.separator is empty"):
        tinygsm.TinyGsm(path, separator="")
    with pytest.raises(errors.UserError, match="options.valid_share is 1"):
        tinygsm.TinyGsm(path, valid_share=1)
    with pytest.raises(errors.UserError, match="there is no file or folder"):
        tinygsm.TinyGsm(str(tmp_path / "none"))
    with pytest.raises(errors.UserError, match="does not hold train.jsonl and test.jsonl"):
        gsm8k.Gsm8k(path)


def test_gsm8k_prompts(tmp_path):
    for split in ("train", "test"):
        write_lines(
            tmp_path / f"{split}.jsonl",
            [("Four?", f"It is.\n#### 4 ({split})"), ("A" * 30, "#### 1"), (" Six? ", "#### 6")],
            ("question", "answer"),
        )
    corpus = gsm8k.Gsm8k(str(tmp_path))
    assert corpus.splits == ("train", "test")
    asked, answers = zip(*corpus.pairs("test"), strict=True)
    assert answers[0] == "It is.\n#### 4 (test)"
    made = gsm8k.prompts(asked, LETTERS, 32)
    assert made.kept_N.tolist() == [0, 2]
    assert [LETTERS.decode(row) for row in made.tokens_NL] == ["Four?\\n", "Six?\\n"]
    assert made.given_NL.sum(axis=1).tolist() == [8, 7]
    assert made.tokens_NL.shape == (2, 32) and (made.tokens_NL[1, 7:] == LETTERS.pad_id).all()
    with pytest.raises(errors.UserError, match="none of the 1 questions fits into 16 tokens"):
        gsm8k.prompts(["A" * 15], LETTERS, 32)
    with pytest.raises(errors.UserError, match="tokenizer 'sudoku' has no padding"):
        gsm8k.prompts(["1"], SudokuTokens(), 32)


def test_a_question_may_hold_what_separates(tmp_path):
    """The given part is told by the document, not looked for in its tokens."""
    path = write_lines(tmp_path / "a.jsonl", [("a\\nb?", "c\\nd")])
    corpus = tinygsm.TinyGsm(path, valid_share=0)
    batch = data.pack(corpus, LETTERS, "train", 16, tmp_path, packing="one_per_row").batch([0])
    assert LETTERS.decode(batch["tokens"][batch["given"]]) == "a\\nb?\\n"


def test_marks_are_of_no_text():
    assert questions.MARK not in "".join(map(chr, itertools.chain([9, 10, 13], range(32, 127))))


def test_the_left_side_of_a_sum_may_be_given(tmp_path):
    corpus = data.load_corpus(
        {"name": "synthetic", "options": {"language": "addition", "documents": 30, "given": True}}
    )
    batch = data.pack(corpus, LETTERS, "train", 8, tmp_path, packing="one_per_row").batch([0, 1])
    left = [LETTERS.decode(row[given]) for row, given in zip(*batch.values(), strict=True)]
    assert [text[1::2] for text in left] == ["+=", "+="]
    with pytest.raises(errors.UserError, match="language 'brackets' has none"):
        data.load_corpus({"name": "synthetic", "options": {"language": "brackets", "given": True}})
