"""What a comparison is asked for, looked at before anything is measured or trained."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from flm_jax import config as config_lib
from flm_jax.config import files as config_files
from flm_jax.data import DATASETS, load_corpus
from flm_jax.data.rows import MANIFEST, prepared_below
from flm_jax.errors import UserError
from flm_jax.host import folders
from flm_jax.lab.compare import methods as methods_lib

FACTORS = (1 / 3, 1.0, 3.0)  # of the config's learning rate: what is tried where nobody chose


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """How much is drawn.

    Attributes:
      evaluations: numbers of network evaluations, of methods that have a choice.
      num_samples: of every run, at the points of the frontier.
      pilot_samples: of the first seed, at every point, to find those.
      points: knob settings of a method, at most.
    """

    evaluations: tuple[int, ...] = (1, 2, 4, 8, 32)
    num_samples: int = 512
    pilot_samples: int = 256
    points: int = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judging:
    """Who judges, beside those that there always are; see `measuring.reference`."""

    judges: tuple[str, ...] = ()
    truth: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """A comparison.

    Attributes:
      base: what all methods have in common: data, network, optimizer, batches.
      budget_minutes: of training, for a method with all that comes before it.
      learning_rates: that are tried; one is taken as it is.
    """

    base: config_lib.Config
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    budget_minutes: float
    learning_rates: tuple[float, ...]
    drawing: Drawing = Drawing()
    judging: Judging = Judging()


def defaults(path: str) -> dict[str, Any]:
    """What a preset of configs/compare.py takes where nothing else is said."""
    from flm_jax.configs import compare  # pyright: ignore[reportAttributeAccessIssue]

    file, preset = config_files.find(path)
    return compare.DEFAULTS.get(preset, {}) if file.name == "compare.py" else {}


def learning_rates(
    base: config_lib.Config, given: Sequence[float], tune: bool
) -> tuple[float, ...]:
    """Those to try: the given ones, else some around the config's; only this one without tuning."""
    own = base.optim.learning_rate
    if not tune:
        if len(given) > 1:
            raise UserError(
                f"--learning_rates={_listed(given)} are to be tried, but --notune tries nothing; "
                "give one, or omit --notune"
            )
        return tuple(given) or (own,)
    return tuple(given) or tuple(float(f"{factor * own:.2g}") for factor in FACTORS)


def check(asked: Asked) -> None:
    """UserError for anything that can be known to be wrong before devices are touched."""
    methods_lib.check(asked.methods)
    once("methods", asked.methods)
    load_corpus(asked.base.data)  # which says what is missing
    once("seeds", asked.seeds)
    once("evaluations", asked.drawing.evaluations)
    once("learning_rates", asked.learning_rates)
    if asked.drawing.pilot_samples > asked.drawing.num_samples:
        raise UserError(
            f"--pilot_samples={asked.drawing.pilot_samples} of every setting are more than the "
            f"--num_samples={asked.drawing.num_samples} of the best ones; raise the latter"
        )


def once(option: str, given: Sequence[object]) -> None:
    """UserError unless there is one at least, and none twice."""
    if not given or len(set(given)) < len(given):
        raise UserError(f"--{option}={_listed(given)} must name at least one, and none twice")


def _listed(given: Sequence[object]) -> str:
    return ",".join(map(str, given))


def base(path: str, overrides: Mapping[str, str], data: str) -> config_lib.Config:
    """The config of a file, with other data, and with values of the command line.

    Args:
      data: a row of DATASETS, a folder of prepared rows, or text: a file, a folder or a glob.

    Raises UserError if there are no such data.
    """
    config = config_lib.load(path)
    if data:
        config = config_lib.changed(config, text(config, data))
    config = config_lib.changed(config, overrides)
    if config.data.name == "text_files" and not config.data.options.get("path"):
        raise UserError(
            "--data=TEXT is missing: a file, a folder, a glob, rows of flm prepare, or a data set"
        )
    return config


def text(config: config_lib.Config, data: str) -> dict[str, object]:
    """What `--data` changes in a config, by dotted name."""
    own = dict(config.data.options)
    if data in DATASETS:
        return {"data.name": data, "data.options": own if data == config.data.name else {}}
    place = folders.expanded(data).absolute()
    if place.is_dir() and _has_rows(place):
        length = prepared_below(place)[0].length
        return {
            "data.name": "prepared",
            "data.length": length,
            "data.options": {"path": str(place)},
            "tokenizer.name": "",
            "tokenizer.options": {},
        }
    if not place.exists():
        if not any(character in data for character in "*?[,"):
            raise UserError(
                f"--data={data}: there is no such file or folder, and no data set of that name; "
                f"the data sets are {', '.join(DATASETS)}"
            )
        place = ",".join(str(folders.expanded(part).absolute()) for part in data.split(","))
    kept = own if config.data.name == "text_files" else {}
    return {"data.name": "text_files", "data.options": kept | {"path": str(place)}}


def _has_rows(folder: pathlib.Path) -> bool:
    """Whether `flm prepare` has been at work there."""
    places = (folder, folder / "rows")
    return (folder / MANIFEST).exists() or any(
        any(place.glob(name)) for place in places for name in (f"*/{MANIFEST}", "*.part")
    )
