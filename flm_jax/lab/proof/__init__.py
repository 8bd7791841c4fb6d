"""Models of known truth, trained and tabled by the exact share of what they write that is right.

For every language and seed: a denoiser (FLM), its flow maps (FMLM), the same with given tokens, and
baselines (masked diffusion and, if asked for, uniform-state diffusion and an autoregressive
network) with the same backbone and as many training steps as both stages together, all from
configs/proof.py. Every run is an ordinary training run in a folder of its own: what is finished is
not trained again, what was interrupted goes on. Each network writes by every sampler that suits it
(`measuring.py`), and the tables (`tables.py`) are means over seeds and half their range.
More: flm proof --help.
"""

import pathlib
from collections.abc import Sequence

from flm_jax.errors import UserError
from flm_jax.host import files
from flm_jax.lab.proof import measuring, runs, tables
from flm_jax.report.svg import draw

BEFORE = {  # the method whose run must be there first; of all others: "flm"
    "flm": "",
    "flm_given": "",
    "any_order": "flm_given",
    "mdlm": "",
    "ar": "",
    "duo_curriculum": "",
    "duo": "duo_curriculum",
    "second_stage": "residual",
}


def prove(
    folder: pathlib.Path,
    languages: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    *,
    size: str = "default",
    scale: float = 1.0,
    grid_power: float = 4.0,
    num_samples: int = 1024,
) -> None:
    """Trains what is not trained yet, writes proof.md and a plot per task, prints the tables.

    One seed after the other, with tables after every language: if it is stopped there are some.

    Raises UserError for a name that is unknown, before anything is trained.
    """
    check(languages, methods, seeds, size)
    if size != "default":
        folder = folder / size
    found = tables.Tables()
    for seed in seeds:
        for language in languages:
            for method in with_earlier(methods, language):
                earlier = before(method, language)
                config = runs.make_config(folder, language, method, earlier, seed, scale, size)
                print(f"\n=== {language}, {method}, seed {seed}")
                workdir = folder / f"{language}_{method}_{seed}"
                runs.train(config, workdir)
                for task in measuring.measure(config, language, workdir, grid_power, num_samples):
                    found.add(task)
                found.minutes(language, method, runs.minutes(workdir))
            save(folder, found)
    print(f"\n{found.text()}\ntables and plots: {folder}/proof.md, {folder}/*.svg")


def save(folder: pathlib.Path, found: tables.Tables) -> None:
    """Writes the tables and a plot for every task."""
    files.write_atomically(folder / "proof.md", found.text())
    for task in found.tasks:
        name = task.replace(", ", "_").replace(" ", "_")
        files.write_atomically(folder / f"{name}.svg", draw(found.picture(task)))


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


def before(method: str, language: str) -> str:
    """The method whose run this one starts from; "" for none."""
    return renamed(BEFORE.get(method, "flm"), language)


def renamed(method: str, language: str) -> str:
    """A denoiser that is asked puzzles has given tokens anyway: flm is flm_given there."""
    from flm_jax.configs import proof  # pyright: ignore[reportAttributeAccessIssue]

    return "flm_given" if method == "flm" and proof.LANGUAGES[language].asks else method


def with_earlier(methods: Sequence[str], language: str) -> list[str]:
    """The methods with those whose runs they need, these first."""
    ordered: list[str] = []

    def add(method):
        earlier = before(method, language)
        if earlier:
            add(earlier)
        if method not in ordered:
            ordered.append(method)

    for method in methods:
        add(renamed(method, language))
    return ordered
