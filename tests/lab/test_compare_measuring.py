"""Files of samples to report: measured once, told apart, and all tables made again from JSON.

Samplers of a chain whose truth is known: the truth at several temperatures, and those that must
lose whatever they look like.
"""

import copy
import dataclasses
import functools
import importlib.util
import json
import pathlib
import re

import numpy as np
import pytest
from known_chain import FIRST, LETTERS, Chain, V

from flm_jax.errors import UserError
from flm_jax.evals import artefact, kneser_ney
from flm_jax.evals.artefact import Artefact
from flm_jax.evals.causal import CausalTruth
from flm_jax.evals.copying import Copying
from flm_jax.evals.diversity import distinct
from flm_jax.evals.text_statistics import sample_entropy
from flm_jax.lab.compare import findings, frontier, measuring, rankings, sentences, tables
from flm_jax.lab.compare.frontier import DIVERSITY, ENTROPY, Value
from flm_jax.lab.compare.reference import Reference
from flm_jax.lab.compare.results import Drawn, Point

N, LENGTH = 144, 24
CHAIN = Chain()
HEADLINE = "nats_per_token/chain"


@functools.cache
def rows(first: int, count: int = N) -> np.ndarray:
    return CHAIN.sample(first + np.arange(count), LENGTH, 0)


@functools.cache
def warmed(temperature: float, seed: int, noise: float = 0.0) -> np.ndarray:
    """The chain's text at a temperature; a share of it, `noise`, is any letter."""
    generator = np.random.default_rng([seed, round(100 * temperature), round(100 * noise)])
    table = CHAIN.transitions_VVV[0] ** (1 / temperature)
    table = (table / table.sum(-1, keepdims=True)).cumsum(-1)
    made = np.full((N, LENGTH), LETTERS.bos_id, np.int32)
    for i in range(1, LENGTH):
        made[:, i] = (generator.random((N, 1)) > table[made[:, i - 1]]).sum(1).clip(0, V - 1)
        wild = generator.random(N) < noise
        made[wild, i] = generator.integers(FIRST, V, wild.sum())
    return made


def make_reference(folder: pathlib.Path, **changes) -> Reference:
    train = rows(0, 600)
    made = Reference(
        LETTERS,
        {
            "chain": CausalTruth(CHAIN.causal_net(), LETTERS, 0, CHAIN.name),
            "counts": kneser_ney.fit(train, LETTERS, 3),
        },
        rows(10_000, 2 * N),
        rows(20_000, 2 * N),
        train,
        None,
        True,
        folder / "reference",
        bleu=False,
    )
    return dataclasses.replace(made, **changes)


def drawn(folder: pathlib.Path, method: str, tokens: np.ndarray, seed=1, evaluations=4, **knobs):
    point = Point(method, evaluations, "euler", tuple(sorted(knobs.items())))
    name = f"{method}_{evaluations}_{seed}_{'_'.join(map(str, knobs.values()))}.jsonl"
    texts = [LETTERS.decode(row.tolist()) for row in tokens]
    artefact.write(folder / name, Artefact({"seed": seed}, tokens, texts, 1.0))
    return Drawn(point, seed, folder / name, float(evaluations))


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """(folder, what was drawn, what the report found)."""
    folder = tmp_path_factory.mktemp("comparison")
    found = []
    for seed in (1, 2, 3):
        for t in (0.7, 0.85, 1.0, 1.2):
            found.append(drawn(folder, "good_1", warmed(t, seed), seed, temperature=t))
            worse = warmed(t, seed + 10, noise=0.3)
            found.append(drawn(folder, "worse", worse, seed, temperature=t))
            same = warmed(t, seed + 20)
            found.append(drawn(folder, "again", same, seed, temperature=t))
        tiled = np.repeat(rows(30_000 + seed, 1), N, axis=0)
        found.append(drawn(folder, "tiled", tiled, seed))
        copies = rows(0, 600)[seed * N : (seed + 1) * N]
        found.append(drawn(folder, "copies", copies, seed, evaluations=1))
    latencies = {("good_1", 4): 3.5, ("worse", 4): 7.0}
    about = {"budget": "8 minutes", "versions": {"jax": "0.1"}}
    reference = make_reference(folder)
    results = measuring.report(
        folder, found, reference, title="A <chain>", about=about, latencies=latencies
    )
    return folder, found, results


def row(results, method, evaluations=4):
    return next(
        x for x in results["rows"] if (x["method"], x["evaluations"]) == (method, evaluations)
    )


def test_every_array_is_what_its_metric_says(tmp_path):
    tokens = warmed(1.0, 5)
    reference = make_reference(tmp_path)
    found = measuring.measure(drawn(tmp_path, "m", tokens), reference)
    assert found.value(HEADLINE) == pytest.approx(CHAIN.score(tokens).mean(), rel=1e-4)
    texts = [LETTERS.decode(row.tolist()) for row in tokens]
    per_character = CHAIN.score(tokens).sum() / sum(map(len, texts))
    assert found.value("nats_per_character/chain") == pytest.approx(per_character, rel=1e-4)
    counts = reference.judges["counts"].score(tokens).mean()
    assert found.value("nats_per_token/counts") == pytest.approx(counts)
    assert found.value(ENTROPY) == pytest.approx(sample_entropy(tokens))
    groups = [distinct(tokens[i : i + 48], 4) for i in (0, 48, 96)]
    np.testing.assert_allclose(found.arrays[DIVERSITY], groups)
    share = dict(Copying(LETTERS, reference.train_rows)(tokens))["copied"]
    assert found.value("copied") == pytest.approx(share)
    assert found.count == N and found.value("mauve/chain") <= 1.0
    assert "mauve/counts" not in found.arrays  # counts have no features
    assert "self_bleu" not in found.arrays
    if importlib.util.find_spec("sacrebleu"):
        one = drawn(tmp_path, "tiled", np.repeat(tokens[:1], 48, axis=0))
        with_bleu = measuring.measure(one, dataclasses.replace(reference, bleu=True))
        assert with_bleu.value("self_bleu") == pytest.approx(1.0)


def test_what_is_measured_is_not_measured_again(tmp_path, monkeypatch):
    one, reference = drawn(tmp_path, "m", warmed(1.0, 5)), make_reference(tmp_path)
    first = measuring.measure(one, reference)
    asked = []
    score = CausalTruth.score
    monkeypatch.setattr(CausalTruth, "score", lambda *a: asked.append("chain") or score(*a))
    monkeypatch.setattr(measuring, "mauve", lambda *a: asked.append("mauve"))
    monkeypatch.setattr(measuring.diversity, "distinct", lambda *a: asked.append("distinct"))
    again = measuring.measure(one, make_reference(tmp_path))
    assert not asked and first.arrays.keys() == again.arrays.keys()
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, again.arrays[name])
    other = {**reference.judges, "third": kneser_ney.fit(reference.train_rows, LETTERS, 2)}
    more = measuring.measure(one, make_reference(tmp_path, judges=other))
    assert not asked and "nats/third" in more.arrays  # only the new judge was asked
    named = {"new name": reference.judges["chain"]}
    measuring.measure(one, make_reference(tmp_path, judges=named))
    drawn(tmp_path, "m", warmed(1.0, 6))  # the same file with other samples
    monkeypatch.undo()
    changed = measuring.measure(one, reference)
    assert changed.sha256 != first.sha256
    assert changed.value(HEADLINE) != first.value(HEADLINE)


def test_a_damaged_cache_is_made_again_and_a_damaged_file_is_refused(tmp_path):
    one, reference = drawn(tmp_path, "m", warmed(1.0, 5)), make_reference(tmp_path)
    first = measuring.measure(one, reference)
    kept = next(tmp_path.glob("*.measures.npz"))
    kept.write_bytes(kept.read_bytes()[:100])
    assert measuring.measure(one, reference).value(HEADLINE) == first.value(HEADLINE)
    text = one.samples.read_text()
    one.samples.write_text(text.replace(": [1, ", ": [99, ").replace(": [0, ", ": [99, "))
    with pytest.raises(UserError, match="other tokens than those of 'characters'"):
        measuring.measure(one, reference)
    one.samples.write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match="not a whole file of samples"):
        measuring.measure(one, reference)


def test_the_truth_at_a_temperature_beats_noise_and_ties_with_itself(compared):
    _, _, results = compared
    for axis in (ENTROPY, DIVERSITY):
        found = findings.pick(results, HEADLINE, axis, 0.0)
        here = {method: value for (method, n), value in found.items() if n == 4}
        assert {"good_1", "again", "worse"} <= here.keys()
        said = rankings.verdict({x: here[x] for x in ("good_1", "again", "worse")})
        assert said is not None and {said.least, *said.tied} == {"good_1", "again"}, axis
        real = results["real"]["values"][HEADLINE]
        assert here["good_1"].low < real + 0.05 and here["good_1"].high > real - 0.05
    tied = tables.over_evaluations(results, ENTROPY, HEADLINE)
    marks = {name: cells[-1].mark for name, cells in tied.rows}
    assert marks["good_1"] == marks["again"] == tables.TIED and marks["worse"] == ""


def test_nonsense_reaches_nothing_or_is_named(compared):
    _, _, results = compared
    assert (("tiled", 4)) not in findings.pick(results, HEADLINE, DIVERSITY, -0.1)
    assert DIVERSITY in row(results, "tiled")["nearest"]["outside"]
    copies = row(results, "copies", 1)["nearest"]
    assert copies["values"]["copied"] == 1.0 and "copied" in copies["outside"]
    assert HEADLINE not in copies["outside"]
    assert "copied" not in row(results, "good_1")["nearest"]["outside"]
    said = sentences.every(results)
    assert any("not reached by tiled" in sentence for sentence in said)


def test_who_is_likelier_than_real_text_is_not_called_best(compared):
    _, _, results = compared
    results = copy.deepcopy(results)
    for one in results["values"]:
        if one["method"] == "again" and one["offset"] in (0.0, -0.1):
            one |= {"value": one["value"] - 0.5, "sigma": 0.01, "bound": False}
    for axis in (ENTROPY, DIVERSITY):
        assert "again" not in tables.contenders(results, HEADLINE, axis, 0.0, 4)
        assert "good_1" in tables.contenders(results, HEADLINE, axis, 0.0, 4)
        assert "again" in tables.contenders(results, HEADLINE, axis, -0.1, 4)  # less is asked there
        marks = {
            name: c[-1].mark for name, c in tables.over_evaluations(results, axis, HEADLINE).rows
        }
        assert marks["again"] == "" and marks["good_1"] == tables.BEST
    said = [x for x in sentences.every(results) if x.startswith("4 evaluations")]
    assert all("good_1" in x and "better than all others" in x for x in said[:2])
    assert all("again is likelier than real text" in x for x in said[:2])


def test_real_text_is_within_its_own_range(tmp_path):
    reference = make_reference(tmp_path)
    real = measuring.real(reference)
    strange = [
        findings.outside(
            measuring.measure(drawn(tmp_path, f"m{i}", rows(50_000 + N * i)), reference), real
        )
        for i in range(8)
    ]
    assert sum(map(len, strange)) <= 6  # of 8 times 15, at 2 % each


def test_the_report_says_all_and_comes_back_from_json(compared):
    folder, _, results = compared
    assert findings.read(folder) == json.loads((folder / "results.json").read_text()) == results
    files = measuring.render(folder)
    names = {path.name for path in files}
    assert {"report.html", "tables.md", "tables.tex"} <= names
    assert {
        "front_entropy_4.svg",
        "evaluations_distinct_4.svg",
        "milliseconds_entropy.svg",
    } <= names
    before = {path.name: path.read_bytes() for path in files}
    for path in files:
        path.unlink()
    measuring.render(folder)  # nothing but results.json is asked
    assert before == {path.name: path.read_bytes() for path in files}
    page = (folder / "report.html").read_text()
    assert "A &lt;chain&gt;" in page and "<chain>" not in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)  # nothing from other hosts
    assert "8 minutes" in page and "jax: 0.1" in page
    times = {name: cells[-1].text for name, cells in tables.at_evaluations(results, 4).rows}
    assert (times["good_1"], times["worse"], times["again"]) == ("3.50", "7.00", tables.NOTHING)
    point = next(x for x in results["points"] if x["method"] == "good_1")
    assert (folder / point["samples"]).is_file() and len(point["sha256"]) == 64
    assert (
        point["settings"] == [["temperature", 0.7]] and point["knobs"] == "euler, temperature 0.7"
    )


def test_nothing_of_a_corpus_is_in_what_is_written(compared):
    folder, found, _ = compared
    real = [LETTERS.decode(x.tolist()) for x in (*rows(0, 600), *rows(10_000, 2 * N))]
    written = {x.samples.name for x in found}
    for path in folder.rglob("*"):
        if path.is_file() and path.name not in written and path.suffix != ".npz":
            content = path.read_text()
            assert not any(text in content for text in real), path
    assert any(x.suffix == ".npz" for x in (folder / "reference").iterdir())
    for path in folder.rglob("*.npz"):
        with np.load(path) as kept:
            assert all(kept[name].size <= 2 * N for name in kept.files)  # numbers, not tokens


def test_tables_are_escaped_for_markdown_and_latex(compared):
    folder, _, results = compared
    tex = (folder / "tables.tex").read_text()
    assert "good\\_1" in tex and "\\toprule" in tex and "$\\pm$" in tex
    for line in tex.splitlines():
        assert not re.search(r"(?<!\\)[%#](?!.*usepackage)", line) or line.startswith("%")
        assert line.isascii(), line
    assert (
        tex.count("\\begin{tabular}") == tex.count("\\end{tabular}") == len(tables.every(results))
    )
    text = (folder / "tables.md").read_text()
    assert "good\\_1" in text
    for block in text.split("\n\n"):
        if block.startswith("| |"):
            cells = [len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()]
            assert len(set(cells)) == 1


def test_versions_and_missing_results_have_a_sentence(compared, tmp_path):
    with pytest.raises(UserError, match="no results in .*give the folder of a comparison"):
        measuring.render(tmp_path)
    (tmp_path / "results.json").write_text('{"format": 2}')
    with pytest.raises(UserError, match="has format 2, and this version of flm_jax reads 1"):
        measuring.render(tmp_path)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(UserError, match="holds no results of a comparison"):
        measuring.render(tmp_path)
    with pytest.raises(UserError, match="no samples"):
        measuring.report(tmp_path, [], make_reference(tmp_path))


def test_kendall_against_orders_that_are_known():
    ordered = dict(zip("abcd", (1.0, 2.0, 3.0, 4.0), strict=True))
    assert rankings.kendall(ordered, ordered) == (1.0, 4)
    assert rankings.kendall(ordered, {k: -v for k, v in ordered.items()}) == (-1.0, 4)
    swapped = ordered | {"a": 2.0, "b": 1.0}  # one pair of six
    assert rankings.kendall(ordered, swapped)[0] == pytest.approx(4 / 6)
    tied = ordered | {"b": 1.0}  # five pairs of six are not tied in the other
    assert rankings.kendall(ordered, tied)[0] == pytest.approx(5 / np.sqrt(6 * 5))
    assert np.isnan(rankings.kendall(ordered, {"a": 1.0})[0])


def test_better_is_said_beyond_two_sigma_only():
    def value(x, sigma=0.1):
        return Value(x, sigma, x - 1.96 * sigma, x + 1.96 * sigma)

    apart = 2 * np.hypot(0.1, 0.1)
    found = rankings.verdict({"a": value(1.0), "b": value(1.0 + apart + 0.01)})
    assert found.best == "a"
    found = rankings.verdict({"a": value(1.0), "b": value(1.0 + apart - 0.01), "c": value(2.0)})
    assert found.best is None and found.tied == ("b",)
    assert rankings.verdict({"a": value(1.0, np.nan), "b": value(9.0)}).best is None
    assert rankings.verdict({"a": value(1.0)}) is None
    assert frontier.combined(np.array([1.0]), np.nan).sigma != 0


def test_rows_follow_the_methods_as_asked_and_their_evaluations(tmp_path):
    given = [("b", 8), ("b", 1), ("a", 4), ("b", 2), ("a", 1)]
    found = [drawn(tmp_path, name, warmed(1.0, i), evaluations=n) for i, (name, n) in
             enumerate(given)]  # fmt: skip
    results = measuring.report(tmp_path, found, make_reference(tmp_path))
    wanted = [("b", 1), ("b", 2), ("b", 8), ("a", 1), ("a", 4)]
    for part in ("rows", "points"):
        assert [(one["method"], one["evaluations"]) for one in results[part]] == wanted
