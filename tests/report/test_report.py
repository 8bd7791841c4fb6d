"""The report: self-contained, well-formed, safe with hostile text, honest about what is missing."""

import html.parser
import itertools
import json
import re
import time

import numpy as np
import pytest
from commands import call

from flm_jax import report
from flm_jax.errors import UserError
from flm_jax.evals import text_statistics
from flm_jax.report import charts, markup, strip

HOSTILE = '<script>alert("x")</script></script><img src=x onerror=alert(1)>\'&amp;\u2028'
VOID = {"meta", "input", "img", "br", "hr", "link"}


class Page(html.parser.HTMLParser):
    """Checks that tags balance and ids are unique; collects text, attributes, scripts."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.attributes, self.text, self.tags = [], set(), [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        self.shown = re.sub(r"\s+", " ", "".join(self.text))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        for name, value in attrs:
            if name == "id":
                assert value not in self.ids, f"id {value} occurs twice"
                self.ids.add(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)
        if "json" in dict(self.attributes[-2:]).get("type", "") and self.open[-1] == "script":
            json.loads(data)


def write_run(workdir, steps=300, frames=4, text="latin small letter a", loss=None, without=()):
    """Write what a finished run leaves, with `text` wherever text can stand."""
    workdir.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    files = {
        "config.json": {"seed": 0, "data": {"name": text, "nested": {"a": [1, 2]}}},
        "run.json": {
            "started": "2026-11-23T14:02:11+00:00",
            "versions": {"python": "3.11.2", "jax": "0.10.2"},
            "hardware": {"platform": "cpu", "device": "cpu", "devices": 1, "host_cores": 2},
            "command": f"python -m flm_jax.main --workdir='{text}'",
            "parameters": 1384193,
            "corpus": {"documents": {"train": 28120}, "vocab_size": 1024, text: text},
            "timings": {"data_s": 6.2, "train_s": 252.3},
            "stopped": "complete",
        },
        "results.json": results(text, frames),
    }
    for name, value in files.items():
        if name not in without:
            (workdir / name).write_text(json.dumps(value))
    if "metrics.jsonl" not in without:
        losses = 2 + 5 * np.exp(-np.arange(steps) / 50) + 0.1 * generator.normal(size=steps)
        with open(workdir / "metrics.jsonl", "w") as file:
            for i in range(steps):
                row = {"step": i + 1, "time": 1.0, "loss": loss if loss else losses[i]}
                row |= {"tokens_per_second": 1000.0, "grad_norm": 1.0, text: 2.0}
                file.write(json.dumps(row) + "\n")
                if (i + 1) % 50 == 0:
                    row = {"step": i + 1, "eval/loss": losses[i], "eval/loss_tau_0.1": 3.0}
                    file.write(json.dumps(row | {"eval/loss_tau_0.9": 0.5}) + "\n")
    if "samples" not in without:
        (workdir / "samples").mkdir(exist_ok=True)
        for step in (100, 200):
            rows = [{"step": step, "sampler_steps": 8, "seed": 0, "index": i} for i in (1, 0)]
            lines = [json.dumps(row | {"text": f"{text} {step} {row['index']}"}) for row in rows]
            (workdir / "samples" / f"step_{step:08d}.jsonl").write_text("\n".join(lines) + "\n{")
    return workdir


def results(text, frames):
    columns = [vars(column) | {"title": f"{column.title}"} for column in text_statistics.COLUMNS]
    values = {column["key"]: 0.5 for column in columns}
    rows = [
        {"name": f"FLM, 8 steps {text}", "kind": "model", "values": values | {"novel": None}},
        {"name": "FLM, 32 steps", "kind": "model", "values": values | {"words_known": 0.75}},
        {"name": "Markov", "kind": "yardstick", "values": values},
        {"name": "held-out", "kind": "data", "values": values | {"words_known": 0.875}},
    ]
    sequence = [["[BOS]", 1.0], [" la", 0.04], [text, 0.97], ["[EOS]", 0.5]]
    strip = [
        {"tau": i / max(1, frames - 1), "t": 0.5, "sequences": [sequence, sequence]}
        for i in range(frames)
    ]
    return {
        "columns": columns,
        "rows": rows,
        "samples": [{"steps": s, "seconds": 1.25, "texts": [text] * 7} for s in (8, 32)],
        "strip": {"tokens_end": [["[BOS]", " la", text, "[EOS]"]] * 2, "frames": strip},
    }


def page_of(workdir):
    return Page(report.write(workdir).read_text(encoding="utf-8"))


def test_a_whole_run_is_shown_in_full(tmp_path):
    page = page_of(write_run(tmp_path / "run"))
    assert "could not be drawn" not in page.shown and "Not here" not in page.shown
    for wanted in (
        "trained on latin small letter a",
        "300 steps · 4 min 12 s of training · 1.38M parameters · 2 CPU cores",
        "started 23 November 2026",
        "75.0 %",
        "step 100",
        "28,120",
        "--workdir=",
        "nested.a",
        "0.10.2",
        "Guessing uniformly costs 6.93 nats",
    ):
        assert wanted.replace("\u00a0", " ") in page.shown.replace("\u00a0", " "), wanted
    order = ["Samples", "Results", "Training", "From noise to text", "Corpus", "Run it again"]
    source = (tmp_path / "run" / "report.html").read_text()
    places = [source.index(f"<h2>{title}</h2>") for title in order]
    assert places == sorted(places)
    assert sorted(path.suffix for path in (tmp_path / "run").iterdir() if path.is_file()) == [
        ".html",
        ".json",
        ".json",
        ".json",
        ".jsonl",
    ]


@pytest.mark.parametrize("frames", [1, 4, 40])
def test_hostile_text_stays_text(tmp_path, frames):
    clean = page_of(write_run(tmp_path / "clean", frames=frames))
    hostile = page_of(write_run(tmp_path / "hostile", frames=frames, text=HOSTILE))
    assert hostile.tags == clean.tags
    assert not any(name.startswith("on") for name, _ in hostile.attributes)
    assert HOSTILE.replace("\u2028", " ") in hostile.shown.replace("\u2028", " ")
    assert "could not be drawn" not in hostile.shown


def test_the_page_needs_no_network(tmp_path):
    source = report.write(write_run(tmp_path / "run", frames=40)).read_text()
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|fetch\(|<link|<iframe", source)
    assert not any(name in ("src", "srcset", "data-src") for name, _ in Page(source).attributes)


@pytest.mark.parametrize(
    "name", ["config.json", "run.json", "metrics.jsonl", "samples", "results.json"]
)
def test_what_is_missing_is_named_and_the_rest_is_shown(tmp_path, name):
    page = page_of(write_run(tmp_path / "run", without=(name,)))
    assert f"{name} is missing or empty; it is written" in page.shown
    assert "could not be drawn" not in page.shown
    assert ("Not here" in page.shown) and ("latin small letter a" in page.shown)
    other = "step 100" if name != "samples" else "Guessing uniformly costs"
    assert other in page.shown


def test_an_interrupted_run_with_a_torn_line_has_curves(tmp_path):
    every = ("run.json", "samples", "results.json")
    workdir = write_run(tmp_path / "run", steps=20, without=every)
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write('{"step": 21, "lo')
    page = page_of(workdir)
    assert "not finished" in page.shown and "20 steps" in page.shown and "loss-log" in page.ids


def test_one_metric_row_is_enough(tmp_path):
    page = page_of(write_run(tmp_path / "run", steps=1))
    assert "1 step " in page.shown and "could not be drawn" not in page.shown


@pytest.mark.parametrize("damage", ["{broken", "[]", '"text"', ""])
def test_damaged_files_cost_only_their_part(tmp_path, damage):
    workdir = write_run(tmp_path / "run")
    (workdir / "run.json").write_text(damage)
    page = page_of(workdir)
    assert "run.json is not" in page.shown and "Guessing" not in page.shown
    assert "loss-log" in page.ids and "held-out" in page.shown


def test_results_of_another_form_cost_only_their_parts(tmp_path):
    workdir = write_run(tmp_path / "run")
    (workdir / "results.json").write_text(
        '{"rows": [1], "columns": [{"better": "higher"}], "samples": [1]}'
    )
    page = page_of(workdir)
    assert page.shown.count("could not be drawn") == 3  # headline, samples, table
    assert "loss-log" in page.ids and "28,120" in page.shown


@pytest.mark.parametrize("loss", ["nan", "inf"])
def test_losses_that_are_not_finite_do_not_break_the_page(tmp_path, loss):
    page = page_of(write_run(tmp_path / "all", loss=loss))
    assert "could not be drawn" not in page.shown
    assert "training: not a finite number at 1, 2, 3, 4, 5, …" in page.shown
    workdir = write_run(tmp_path / "one")
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 301, "loss": loss}) + "\n")
    page = page_of(workdir)
    assert "training: not a finite number at 301" in page.shown and "loss-log" in page.ids


def test_only_losses_that_are_not_finite(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": "nan", "eval/loss": "inf"}\n')
    assert "no finite value was logged" in page_of(tmp_path).shown


def test_long_runs_stay_small_and_fast(tmp_path):
    workdir = write_run(tmp_path / "run", steps=30_000)
    start = time.process_time()
    path = report.write(workdir)
    assert time.process_time() - start < 3
    assert path.stat().st_size < 600_000
    drawn = re.findall(r' d="M([^"]*)"', path.read_text())
    assert 500 < max(line.count("L") for line in drawn) < 2000


def test_the_best_model_row_is_bold_and_ties_are_not(tmp_path):
    report.write(write_run(tmp_path))
    source = (tmp_path / "report.html").read_text()
    table = source[source.index("<tbody>") : source.index("</tbody>")]
    assert re.findall(r"<b>([^<]*)</b>", table) == ["75.0\u00a0%"]
    assert "−12.5" in table and "+" not in table.split("−12.5")[0].split("<tr")[-1]


def change(path, **values):
    """Replace keys of a JSON file; nested dicts are merged."""
    content = json.loads(path.read_text())
    for key, value in values.items():
        content[key] = content.get(key, {}) | value if isinstance(value, dict) else value
    path.write_text(json.dumps(content))


def write_rows(workdir, *rows):
    """Results of rows (name, kind, known words, entropy in a sample)."""
    made = [
        {"name": name, "kind": kind, "values": {"words_known": words, "sample_entropy": entropy}}
        for name, kind, words, entropy in rows
    ]
    change(write_run(workdir) / "results.json", rows=made)
    source = report.write(workdir).read_text().replace("\u00a0", " ")
    tiles = source[source.index('class="tiles"') : source.index("<nav>")]
    table = source[source.index("<tbody>") : source.index("</tbody>")]
    return tiles, re.findall(r"<b>([^<]*)</b>", table), Page(source).shown


def test_a_collapsed_model_is_not_praised_for_its_known_words(tmp_path):
    """The numbers of the quickstart: one step of the denoiser repeats the most common pieces."""
    tiles, bold, shown = write_rows(
        tmp_path,
        ("FLM, 1 step", "model", 0.819, 1.47),
        ("FLM, 8 steps", "model", 0.725, 2.72),
        ("FLM, 128 steps", "model", 0.738, 2.64),
        ("markov sampler", "yardstick", 0.964, 3.10),
        ("held-out data", "data", 0.947, 2.76),
    )
    assert "<b>73.8 %</b>" in tiles and "81.9" not in tiles and "<b>2.64</b>" in tiles
    assert "FLM, 128 steps; held-out data: 94.7 %; markov sampler: 96.4 %" in tiles
    assert bold == ["2.72", "73.8 %"]  # row by row
    assert shown.count("model, repeats itself") == 1
    assert "of those with at least 75 % of its entropy in a sample" in shown


def test_the_default_number_of_steps_is_the_headline_even_where_it_is_poor(tmp_path):
    tiles, bold, _ = write_rows(
        tmp_path,
        ("FMLM, 8 steps", "model", 0.7, 2.7),
        ("FMLM, 1 step", "model", 0.9, 1.0),
        ("held-out data", "data", 0.947, 2.76),
    )
    assert "<b>90.0 %</b>" in tiles and "FMLM, 1 step, which repeats itself; held-out" in tiles
    assert bold == ["70.0 %", "2.70"]


def test_the_best_is_what_is_nearest_to_real_text(tmp_path):
    rows = ("FLM, 1 step", "model", 0.99, 3.4), ("FLM, 8 steps", "model", 0.93, 2.5)
    data = ("held-out data", "data", 0.947, 2.76)
    assert write_rows(tmp_path, *rows, data)[1] == ["93.0 %", "2.50"]
    tiles, bold, shown = write_rows(tmp_path, *rows)  # nothing to compare with: as a column says
    assert bold == ["99.0 %"] and "A bold number is the best of the model's rows." in shown
    assert "<b>93.0 %</b>" in tiles and "repeats itself" not in shown
    assert write_rows(tmp_path, data)[1] == []


@pytest.mark.parametrize(
    ("loss", "two_times", "by_level", "title", "axes"),
    [
        ("flow_matching", False, True, "Flow language model", 1),
        ("psd", True, True, "Flow map language model (psd)", 2),
        ("residual", True, False, "Flow map language model (residual)", 1),
        ("masked_diffusion", False, False, "Language model (masked_diffusion)", 1),
    ],
)
def test_different_quantities_share_no_axis(tmp_path, loss, two_times, by_level, title, axes):
    workdir = write_run(tmp_path)
    change(workdir / "config.json", loss={"name": loss}, model={"two_times": two_times})
    if not by_level:
        log = workdir / "metrics.jsonl"
        log.write_text(re.sub(r', "eval/loss_tau_[^}]*', "", log.read_text()))
    page = page_of(workdir)
    assert f"{title} trained on" in page.shown and "could not be drawn" not in page.shown
    assert ("held-out-log" in page.ids) == (axes == 2)
    assert ("Losstrainingheld-out" in page.shown) == (axes == 1)  # one chart with two lines
    assert ("Guessing uniformly costs 6.93" in page.shown) == by_level
    assert ("an axis of its own" in page.shown) == (axes == 2)
    assert (f"The objective of {loss}" in page.shown) == (not by_level)


def test_learned_weights_are_not_part_of_the_training_curve(tmp_path):
    workdir = write_run(tmp_path, text="nll", loss=9.0)  # nll is 2 at each step
    change(workdir / "config.json", model={"loss_weighting": True})
    source = report.write(workdir).read_text()
    assert 'aria-label="training from 2 to 2; held-out' in source
    change(workdir / "config.json", model={"loss_weighting": False})
    assert 'aria-label="training from 9 to 9; held-out' in report.write(workdir).read_text()


@pytest.mark.parametrize(
    ("stopped", "shown", "good"),
    [
        ("complete", "complete", True),
        ("time limit", "complete: time budget used", True),
        ("failed", "failed", False),
        ("signal", "signal", False),
    ],
)
def test_a_run_that_ended_well_has_no_warning(tmp_path, stopped, shown, good):
    workdir = write_run(tmp_path, without=("samples",))
    change(workdir / "run.json", stopped=stopped)
    source = report.write(workdir).read_text()
    assert f'<span class="badge {"good" if good else "open"}">{shown}</span>' in source
    assert ('<ul class="missing">' in source) == (not good)
    assert "samples is missing or empty; it is written" in Page(source).shown


def test_the_held_out_tile_is_the_model_that_was_saved(tmp_path):
    workdir = write_run(tmp_path)
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write('{"step": 320, "eval/loss": 1.5}\n{"step": 340, "eval/loss": 1.75}\n')
        file.write('{"step": 360, "eval/loss": "nan"}\n')
    shown = page_of(workdir).shown
    assert "1.750nats per token, at step 340; lowest: 1.500 at step 320" in shown


def test_user_mistakes_are_sentences_with_exit_code_2(tmp_path, capsys):
    with pytest.raises(UserError, match="there is no directory .*nowhere"):
        report.write(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has none of config.json"):
        report.write(tmp_path)
    assert call("report", f"--workdir={tmp_path / 'nowhere'}") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    assert call("report") == 2 and "--workdir=DIR is missing" in capsys.readouterr().err


def test_the_command_prints_the_path(tmp_path, capsys):
    write_run(tmp_path)
    assert call("report", f"--workdir={tmp_path}", "--open=false") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")


PAIR = (
    ("judge_nats", "nats / token", "data"),
    ("distinct_4", "distinct-4", "data"),
    ("words_known", "known words", "higher"),
)


def write_pairs(workdir, *rows, verdict=()):
    """Results of rows (name, kind, steps, nats, distinct-4)."""
    columns = [{"key": k, "title": title, "better": better} for k, title, better in PAIR]
    made = []
    for name, kind, steps, nats, diversity in rows:
        values = {"judge_nats": nats, "distinct_4": diversity, "words_known": nats / 10}
        made.append({"name": name, "kind": kind, "values": values})
        made[-1] |= {"steps": steps, "method": name} if steps else {}
    change(write_run(workdir) / "results.json", rows=made, columns=columns, verdict=list(verdict))
    source = report.write(workdir).read_text().replace("\u00a0", " ")
    return source, Page(source).shown


REAL = ("held-out data", "data", 0, 1.30, 0.70), ("fresh truth", "data", 0, 1.20, 0.77)


def test_the_pair_is_the_headline_and_the_plot(tmp_path):
    source, shown = write_pairs(
        tmp_path,
        ("FLM, 8 steps", "model", 8, 4.10, 0.80),
        ("FLM, 128 steps", "model", 128, 0.96, 0.32),
        ("unigram sampler", "yardstick", 0, 8.50, 0.99),
        *REAL,
        verdict=["a sentence", "best at <b>"],
    )
    assert "could not be drawn" not in shown
    header = source[: source.index("<nav>")]
    said = "FLM, 128 steps: 0.96 nats a token (real text 1.20), distinct-4 0.32 (real text 0.77): "
    assert said + "likelihood bought with diversity, its samples are alike." in header
    titles = re.findall('<div class="tile"><span>([^<]*)', header)
    assert titles[:3] == ["nats / token", "distinct-4", "held-out loss"]
    assert "FLM, 128 steps; fresh truth: 1.20; held-out data: 1.30; unigram sampler: 8.50" in header
    figure = source[source.index('<figure class="chart scatter"') :]
    figure = figure[: figure.index("</figure>")]
    labels = re.findall('class="mark[^>]*>([^<]*)<', figure)
    assert sorted(labels) == [
        "128 steps", "8 steps", "fresh truth", "held-out data", "unigram sampler",
    ]  # fmt: skip
    # the band is as wide as twice what counts as matched, and real text is in its middle
    start, width = (float(re.search(f' {k}="([0-9.]+)"', figure)[1]) for k in ("x", "width"))
    at = re.search(r'left:([0-9.]+)%;top:[0-9.]+%" title="fresh truth', figure)
    assert 10 * float(at[1]) == pytest.approx(start + width / 2, abs=0.2)
    right, left = (
        float(re.search(rf'left:([0-9.]+)%;top:[0-9.]+%" title="{name}', figure)[1])
        for name in ("FLM, 8", "FLM, 128")
    )
    assert (right - left) / 0.48 == pytest.approx(width / 10 / 0.1, rel=1e-2)
    assert 'aria-label="model from 4.1 to 0.96; real text from 1.2 to 1.2"' in source
    assert "a sentence" in shown and "best at <b>" in shown


def test_labels_of_near_points_do_not_lie_on_each_other(tmp_path):
    rows = [(f"FLM, {n} steps", "model", n, 1.3 + n / 1000, 0.77) for n in (1, 2, 4)]
    source, _ = write_pairs(tmp_path, ("unigram sampler", "yardstick", 0, 9.0, 1.0), *rows, *REAL)
    found = re.findall(r'class="mark( left)?" style="left:[0-9.]+%;top:([0-9.]+)%', source)
    places = [[float(top) for left, top in found if bool(left) == side] for side in (True, False)]
    assert sum(map(len, places)) == 6 and all(0 < top < 100 for side in places for top in side)
    assert all(b - a >= 5.9 for side in places for a, b in itertools.pairwise(sorted(side)))


def test_bold_is_only_what_is_as_diverse_as_real_text(tmp_path):
    collapsed = "FLM, 128 steps", "model", 128, 1.21, 0.32
    near, far = ("FLM, 8 steps", "model", 8, 4.10, 0.80), ("FLM, 32 steps", "model", 32, 3.3, 0.73)
    source, shown = write_pairs(tmp_path, collapsed, near, far, *REAL)
    table = source[source.index("<tbody>") : source.index("</tbody>")]
    assert re.findall("<b>([^<]*)</b>", table) == ["0.80", "3.30", "0.33"]
    assert "model, less diverse than real text, its samples are alike" in shown
    assert "of those as diverse as it (distinct-4 within 0.05)" in shown
    source, shown = write_pairs(tmp_path, collapsed, collapsed[:3] + (0.9, 0.2), *REAL)
    table = source[source.index("<tbody>") : source.index("</tbody>")]
    assert "<b>" not in table and "likelihood bought with diversity" in shown


@pytest.mark.parametrize("rows", [[("FLM, 1 step", "model", 1, 2.0, 0.5)], [], [*REAL]])
def test_without_a_pair_of_both_there_is_no_plot_or_an_empty_one(tmp_path, rows):
    _, shown = write_pairs(tmp_path, *rows, verdict=["no verdict: because"])
    assert "could not be drawn" not in shown
    assert ("no verdict: because" in shown) == bool(rows)
    assert ("Likelihood and diversity" in shown) == (len(rows) == 2)


def test_an_old_report_survives_a_failed_write(tmp_path, monkeypatch):
    write_run(tmp_path)
    (tmp_path / "report.html").write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.os, "replace", fail)
    with pytest.raises(UserError, match="cannot write .*report.html: No space left"):
        report.write(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"


def test_strip_shows_pieces_as_text_and_counts_what_is_final():
    frames = [
        {"tau": 0.0, "t": 0.0, "sequences": [[["[CLS]", 0.95], ["the", 0.0], ["##s", 0.25]]]},
        {"tau": 1.0, "t": 1.0, "sequences": [[["[CLS]", 1.0], ["this", 1.0], ["##s", 1.0]]]},
    ]
    page = Page(strip.strip({"frames": frames}))
    assert "67 % final¶ thes" in page.shown and "100 % final¶ thiss" in page.shown
    levels = [value for name, value in page.attributes if name == "class" and value[0] == "c"]
    assert levels[10:] == ["c9 end", "c0", "c2", "c9 end", "c9", "c9"]
    other_end = [["[CLS]", "this", "##t"]]
    page = Page(strip.strip({"frames": frames, "tokens_end": other_end}))
    assert "33 % final" in page.shown and "67 % final" in page.shown
    assert "no frames" in strip.strip({"frames": []})


def test_moving_average_keeps_lines_straight_and_has_no_lag_inside():
    y = 3.0 + 2.0 * np.arange(1000)
    smooth = charts.moving_average(y)
    np.testing.assert_allclose(smooth[:-11], y[:-11])
    noise = np.random.default_rng(0).normal(size=5000)
    assert charts.moving_average(noise)[100:].std() < 0.15


def test_thinning_keeps_extremes_and_order():
    y = np.random.default_rng(0).normal(size=50_000)
    y[12345], y[23456] = 50, -50
    keep = charts.thin(np.linspace(0, 1, len(y)), y, bins=100)
    assert len(keep) <= 202 and (np.diff(keep) > 0).all()
    assert {0, 12345, 23456, len(y) - 1} <= set(keep.tolist())


@pytest.mark.parametrize(
    "low, high", [(0, 1), (-3.2, 7.9), (1e-9, 2e-9), (2.0, 2.001), (0, 6200), (1e6, 3e7)]
)
def test_ticks_are_round_few_and_inside(low, high):
    values = charts.ticks(low, high)
    assert 2 <= len(values) <= 7
    step = values[1] - values[0]
    assert all(low - 1e-6 * step <= value <= high + 1e-6 * step for value in values)
    mantissa = float(f"{step:.3e}".split("e")[0])
    assert mantissa in (1, 2, 5)


def test_ticks_of_a_narrow_range_are_told_apart():
    assert charts.tick_labels([4.07, 4.072, 4.074]) == ["4.070", "4.072", "4.074"]
    assert charts.tick_labels([-2.0005, -2.0, -1.9995]) == ["−2.0005", "−2.0000", "−1.9995"]
    assert charts.tick_labels([1_000_200, 1_000_400]) == ["1000200", "1000400"]
    assert charts.tick_labels([0, 5000, 10_000]) == ["0", "5k", "10k"]


def test_log_ticks():
    assert charts.log_ticks(1, 6200) == [1, 10, 100, 1000]
    assert charts.log_ticks(5, 80) == [5, 10, 20, 50]


def test_numbers_as_people_read_them():
    assert [markup.duration(s) for s in (0.84, 9.99, 59.6, 252.3, 12_000)] == [
        "0.8 s",
        "10 s",
        "60 s",
        "4 min 12 s",
        "3 h 20 min",
    ]
    assert [markup.short(x) for x in (950, 12_500, 3.4e6, 0.025, 0, -0.0003)] == [
        "950",
        "12.5k",
        "3.4M",
        "0.025",
        "0",
        "−3e−04",
    ]
    assert markup.number(28120) == "28,120" and markup.number(True) == "True"
    assert markup.plural(1, "step") == "1 step" and markup.plural(1200, "step") == "1,200 steps"
