"""Models of synthetic languages, trained and tabled by the exact validity of what they write.

For every language and seed: a denoiser (FLM), its flow maps (FMLM), and baselines (masked diffusion
and, if asked for, uniform-state diffusion and an autoregressive network) with the same backbone and
as many training steps as both together, all from configs/proof.py. Every run is an ordinary
training run in a folder of its own: what is finished is not trained again, what was interrupted
goes on. The table is the mean over seeds and half their range. More: flm proof --help.
"""

import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from flm_jax import config as config_lib
from flm_jax.errors import UserError
from flm_jax.host import files
from flm_jax.options import Evaluation

COLUMN = "valid"  # of `evals.truth`, plotted
MORE = {
    "total_variation": "total variation from the truth",
    "feature_distance": "distance of features from the truth",
    "held_out": "never trained on, of the valid",
    "coverage": "texts that occur",
    "distinct": "different texts among the valid",
    "log_likelihood": "log-likelihood of the valid, nats",
}
OF_FRESH_TRUTH = {  # what as many samples of the truth itself have, in brackets
    "total_variation": "total_variation_noise",
    "feature_distance": "feature_distance_truth",
}
OF_OPEN_LANGUAGES = ("distinct", "log_likelihood")  # for languages too large for total variation
BEFORE = {  # the method whose run must be there first; of all others: "flm"
    "flm": "",
    "mdlm": "",
    "ar": "",
    "duo_curriculum": "",
    "duo": "duo_curriculum",
    "second_stage": "residual",
}
DASHED = ' stroke-dasharray="5 4"'
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#ff7f0e", "#17becf", "#7f7f7f")


def prove(
    folder: pathlib.Path,
    languages: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    *,
    size: str = "default",
    scale: float = 1.0,
    grid_power: float = 4.0,
) -> None:
    """Trains what is not trained yet, writes proof.md and a plot per language, prints the table.

    Raises UserError for a name that is unknown, before anything is trained.
    """
    check(languages, methods, seeds, size)
    if size != "default":
        folder = folder / size
    runs = []
    for language in languages:
        for seed in seeds:
            for method in with_earlier(methods):
                config = make_config(folder, language, method, seed, scale, size)
                print(f"\n=== {language}, {method}, seed {seed}")
                workdir = folder / f"{language}_{method}_{seed}"
                rows = run_one(config, workdir) | on_grid(config, workdir, grid_power)
                runs.append((language, rows))
    every = gather(runs)
    text, found = report(every, {name: possible_texts(name) for name in languages}), every[COLUMN]
    try:  # saved before it is shown, and shown if it cannot be saved
        files.write_atomically(folder / "proof.md", text)
        for language in languages:
            files.write_atomically(folder / f"{language}.svg", plot(found, language))
    finally:
        print(f"\n{text}")
    print(f"table and plots: {folder}/proof.md, {folder}/*.svg")


def check(
    languages: Sequence[str], methods: Sequence[str], seeds: Sequence[int], size: str
) -> None:
    """UserError unless all are known: better now than after hours of training."""
    from flm_jax.configs import proof  # pyright: ignore[reportAttributeAccessIssue]

    for what, given, known in (
        ("languages", languages, proof.LANGUAGES),
        ("methods", methods, proof.METHODS),
        ("size", [size], proof.SIZES),
    ):
        for name in given:
            if name not in known:
                raise UserError(f"--{what}: {name!r} is unknown; use {', '.join(known)}")
    for what, given in (("languages", languages), ("methods", methods), ("seeds", seeds)):
        if not given or len(set(given)) < len(given):
            shown = ",".join(map(str, given))
            raise UserError(f"--{what}={shown} must name at least one, and none twice")


def with_earlier(methods: Sequence[str]) -> list[str]:
    """The methods with those whose runs they need, these first."""
    ordered: list[str] = []

    def add(method):
        earlier = BEFORE.get(method, "flm")
        if earlier:
            add(earlier)
        if method not in ordered:
            ordered.append(method)

    for method in methods:
        add(method)
    return ordered


def run_one(config: config_lib.Config, workdir: pathlib.Path) -> dict[str, dict[str, float | None]]:
    """Trains one model, unless it is there; the values of `evals.truth` by name of the row."""
    from flm_jax import experiment
    from flm_jax.training import loop

    config_lib.validate(config, experiment.tables())
    code = loop.train(config, workdir)
    if code:
        raise SystemExit(code)
    results = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    rows = {}
    for row in results["rows"]:
        own = row["kind"] == "model"
        if own:
            rows[f"{config.stage}, {row['name'].split(', ')[-1]}"] = row["values"]
        elif config.stage == "flm":  # baselines are the same for all methods
            rows[row["name"]] = row["values"]
    return rows


def on_grid(
    config: config_lib.Config, workdir: pathlib.Path, power: float
) -> dict[str, dict[str, float | None]]:
    """The values of `evals.truth` on another grid; none for one step and samplers of tokens.

    Samples are kept in a folder of the run and are not drawn again.
    """
    from flm_jax.inference import evaluation
    from flm_jax.samplers import SAMPLERS

    steps = tuple(n for n in config.sampler.steps if n > 1)
    if "grid_power" not in SAMPLERS[config.sampler.name].uses or power == config.sampler.grid_power:
        return {}
    samples = workdir / f"grid_{power:g}"
    options = Evaluation(
        checkpoint=str(workdir),
        steps=steps,
        num_samples=config.sampler.num_samples,
        batch_size=config.sampler.batch_size,
        knobs={"grid_power": power},
        samples=str(samples),
    )
    try:
        found = evaluation.evaluate(options)
    except UserError:  # the folder, which is only ours, holds another number, or of other weights
        shutil.rmtree(samples, ignore_errors=True)
        found = evaluation.evaluate(options)
    own = (row for row in found["rows"] if row["kind"] == "model")
    return {f"{config.stage}, grid {power:g}, {row['name']}": row["values"] for row in own}


def make_config(
    folder: pathlib.Path,
    language: str,
    method: str,
    seed: int,
    scale: float = 1.0,
    size: str = "default",
) -> config_lib.Config:
    """The config of one run of the proof, with ``scale`` times its training steps."""
    from flm_jax.configs import proof  # pyright: ignore[reportAttributeAccessIssue]

    tree = proof.get_config(f"{language},{method},{size}").to_dict()
    train, optim, model = tree["train"], tree["optim"], tree["model"]
    tree["seed"] = seed
    train["steps"] = max(2, round(scale * train["steps"]))
    optim["warmup_steps"] = min(optim["warmup_steps"], train["steps"] // 2)
    earlier = BEFORE.get(method, "flm")
    if earlier:
        source = str(folder / f"{language}_{earlier}_{seed}")
        # What a residual learns is not a denoiser: the network made of both starts as the denoiser.
        first = source if earlier != "residual" else str(folder / f"{language}_flm_{seed}")
        tree["init_from"] = first
        on_data = tree["loss"]["options"].get("on_diagonal") == "data"
        tree["teacher"] = source if model["two_times"] and not on_data else ""
    return config_lib.resolve(tree)


def gather(
    runs: list[tuple[str, dict[str, dict[str, float | None]]]],
) -> dict[str, dict[tuple[str, str], list[float]]]:
    """Column -> (language, name of the row) -> one value per seed, of (language, rows) of runs."""
    every = {column: {} for column in (COLUMN, *MORE, *OF_FRESH_TRUTH.values())}
    for language, rows in runs:
        for name, values in rows.items():
            counted = values.get("coverage") is not None
            for column, found in every.items():
                if values.get(column) is not None and not (counted and column in OF_OPEN_LANGUAGES):
                    found.setdefault((language, name), []).append(values[column])
    return every


def possible_texts(language: str) -> int:
    """How many texts the language has."""
    from flm_jax import data
    from flm_jax.configs import proof  # pyright: ignore[reportAttributeAccessIssue]

    section = proof.get_config(f"{language},flm").data
    corpus = data.load_corpus({"name": section.name, "options": section.options.to_dict()})
    assert isinstance(corpus, data.Synthetic)  # by its name
    return corpus.language.size


def report(
    every: dict[str, dict[tuple[str, str], list[float]]], sizes: Mapping[str, int] | None = None
) -> str:
    """The tables of all columns that have values; ``sizes``: possible texts by language."""
    titles = {COLUMN: "valid samples", **MORE}
    blocks = []
    for column, title in titles.items():
        of_truth = every.get(OF_FRESH_TRUTH.get(column, ""), {})
        if of_truth:
            title += " (of as many samples of the truth itself)"
        if every[column]:
            shown = sizes if column == COLUMN else None
            blocks.append(table(every[column], title, column != "log_likelihood", of_truth, shown))
    return "\n".join(blocks)


def table(
    found: dict[tuple[str, str], list[float]],
    title: str = "valid samples",
    percent: bool = True,
    of_truth: Mapping[tuple[str, str], list[float]] = MappingProxyType({}),
    sizes: Mapping[str, int] | None = None,
) -> str:
    """A Markdown table: one row per model and number of steps, one column per language.

    ``of_truth``: values that stand in brackets behind the others.
    """
    languages = list(dict.fromkeys(language for language, _ in found))
    names = list(dict.fromkeys(name for _, name in found))
    lines = [f"| {title} | " + " | ".join(languages) + " |"]
    lines.append("|---|" + "---:|" * len(languages))
    if sizes:
        lines.append("| possible texts | " + " | ".join(count(sizes[x]) for x in languages) + " |")
    for name in names:
        cells = []
        for key in ((language, name) for language in languages):
            shown = cell(found.get(key, []), percent)
            if key in of_truth:
                shown += f" ({cell([float(np.mean(of_truth[key]))], percent)})"
            cells.append(shown)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def count(size: int) -> str:
    """132, 1,000,000, 6.8e21."""
    return f"{size:,}" if size <= 10**6 else f"{size:.1e}".replace("e+", "e")


def cell(values: list[float], percent: bool = True) -> str:
    """Mean over seeds and half their range, in percent or as they are."""
    if not values:
        return "–"
    scale, digits, unit = (100, 1, " %") if percent else (1, 2, "")
    mean = f"{scale * np.mean(values):.{digits}f}"
    spread = f" ± {scale * np.ptp(values) / 2:.{digits}f}" if len(values) > 1 else ""
    return f"{mean}{spread}{unit}"


def plot(found: dict[tuple[str, str], list[float]], language: str) -> str:
    """Validity against the number of network evaluations (log scale), as an SVG picture.

    A method has one colour; its second grid is dashed.
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    for (own, name), values in found.items():
        method, _, steps = name.rpartition(", ")
        if own == language and method:
            curves.setdefault(method, []).append((int(steps.split()[0]), float(np.mean(values))))
    width, height, left, top, inner_w, inner_h = 640, 380, 60, 40, 420, 280
    most = max((steps for points in curves.values() for steps, _ in points), default=2)

    def place(steps: int, share: float) -> tuple[float, float]:
        x = left + inner_w * np.log2(steps) / max(np.log2(most), 1.0)
        return round(x, 1), round(top + inner_h * (1.0 - share), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="22">{language}: share of valid samples against network '
        "evaluations</text>",
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        _, y = place(1, share)
        parts.append(f'<path d="M{left},{y} h{inner_w}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 45}" y="{y + 4}">{100 * share:.0f} %</text>')
    for steps in sorted({steps for points in curves.values() for steps, _ in points}):
        x, y = place(steps, 0.0)
        parts.append(f'<text x="{x - 5}" y="{y + 20}">{steps}</text>')
    methods = list(dict.fromkeys(curve.partition(", ")[0] for curve in curves))
    colours = {method: COLOURS[i % len(COLOURS)] for i, method in enumerate(methods)}
    legend = [(method, method, "") for method in methods]
    for curve, points in curves.items():
        method, _, grid = curve.partition(", ")
        stroke = f'fill="none" stroke="{colours[method]}" stroke-width="2"{DASHED if grid else ""}'
        line = " ".join(f"{x},{y}" for x, y in (place(*point) for point in sorted(points)))
        parts.append(f'<polyline points="{line}" {stroke}/>')
        for point in points:
            x, y = place(*point)
            parts.append(f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colours[method]}"/>')
        if grid and grid not in (name for name, _, _ in legend):
            legend.append((grid, method, DASHED))
    for i, (name, method, dashes) in enumerate(legend):
        x, y = left + inner_w + 20, top + 20 + 22 * i
        stroke = f'stroke="{colours[method]}" stroke-width="2"{dashes}'
        parts.append(f'<path d="M{x},{y - 4} h22" {stroke}/>')
        parts.append(f'<text x="{x + 30}" y="{y}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
