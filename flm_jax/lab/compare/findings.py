"""results.json: all that tables, pictures and sentences of a comparison are made of.

Plain JSON; numbers that are unknown are null. `Results` by key:

  format      1; title, about: of whoever asked
  headline    the likelihood that tables begin with, a key of "values" below
  judges      name, fingerprint, exact (the truth itself), reads (the tokens of the samples)
  settings    samples of a group, resamples, targets and nearness by axis
  real        real text: name, count, values and sigmas by metric (`measured`)
  landmarks   the same of samplers without a network
  points      every file of samples: method, evaluations, used (on average), sampler, settings,
              knobs (for people), seed, samples (path, relative to the folder), sha256, count,
              values, sigmas, outside (metrics outside of the range of real text of that size)
  rows        every (method, evaluations): seeds, the "likeliest" point and the one "nearest" to
              the diversity of real text, as means over seeds: knobs, values, outside
  values      for every likelihood, axis, offset from real text's diversity, method and number of
              evaluations: value, sigma, low, high, bound (`frontier`); value is null where the
              method does not reach that diversity
  orders      Kendall's tau of the order of methods under two likelihoods, by axis, at the diversity
              of real text: evaluations (null: all together), tau, methods
  latencies   milliseconds a sample of (method, evaluations)
"""

import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from flm_jax.errors import UserError
from flm_jax.evals.diversity import GROUP
from flm_jax.host import files
from flm_jax.lab.compare import frontier, rankings
from flm_jax.lab.compare.frontier import DIVERSITY, ENTROPY, NEAR, TARGETS, Value
from flm_jax.lab.compare.measured import RESAMPLED, Measured
from flm_jax.lab.compare.reference import Reference
from flm_jax.lab.compare.results import Point

FORMAT = 1
FILE = "results.json"
Results: TypeAlias = dict[str, Any]
_RANGE = 2.326  # standard deviations of the 1 % and the 99 % quantile
_FINEST = 1e-3  # differences below are none


def gather(
    found: Sequence[Measured],
    real: Measured,
    landmarks: Sequence[Measured],
    reference: Reference,
    folder: pathlib.Path,
    latencies: Mapping[tuple[str, int], float],
) -> Results:
    """What results.json holds, without title and about."""
    methods = list(dict.fromkeys(one.point.method for one in found))  # as they were asked for
    found = sorted(found, key=lambda one: (methods.index(one.point.method), one.point.evaluations))
    likelihoods = [f"nats_per_token/{name}" for name in reference.judges]
    values = list(_values(found, real, likelihoods))
    judges = [
        {
            "name": name,
            "fingerprint": reference.fingerprints[name],
            "exact": reference.exact and i == 0,
            "reads": reference.reads(name),
        }
        for i, name in enumerate(reference.judges)
    ]
    return {
        "format": FORMAT,
        "headline": likelihoods[0],
        "judges": judges,
        "settings": {
            "group": GROUP,
            "resampled": RESAMPLED,
            "targets": {axis: list(offsets) for axis, offsets in TARGETS.items()},
            "near": dict(NEAR),
        },
        "real": _landmark(real),
        "landmarks": [_landmark(one) for one in landmarks],
        "points": [_point(one, real, folder) for one in found],
        "rows": list(_rows(found, real, likelihoods[0])),
        "values": values,
        "orders": list(_orders(values, likelihoods)),
        "latencies": [
            {"method": method, "evaluations": evaluations, "milliseconds": value}
            for (method, evaluations), value in latencies.items()
        ],
    }


def write(folder: pathlib.Path, results: Results) -> None:
    """Raises UserError if the folder cannot be written."""
    text = json.dumps(results, indent=1, allow_nan=False, ensure_ascii=False)
    files.write_atomically(folder / FILE, text + "\n")


def read(folder: pathlib.Path) -> Results:
    """Raises UserError if there is no results.json of a version that this can read."""
    path = folder / FILE
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        version = results["format"]
    except OSError as error:
        raise UserError(
            f"no results in {folder}: {FILE} cannot be read ({error.strerror or error}); give the "
            "folder of a comparison"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no results of a comparison ({error})") from None
    if version != FORMAT:
        raise UserError(
            f"{path} has format {version}, and this version of flm_jax reads {FORMAT}; make it "
            "again with the same command"
        )
    return results


def value_of(row: Mapping[str, Any]) -> Value:
    """The `Value` of an entry of "values" that has one."""
    sigma, low, high = (math.nan if row[key] is None else row[key] for key in _WIDTHS)
    return Value(row["value"], sigma, low, high, row["bound"])


def pick(
    results: Results, likelihood: str, axis: str, offset: float
) -> dict[tuple[str, int], Value]:
    """The values there are at one place, by (method, evaluations)."""
    return {
        (row["method"], row["evaluations"]): value_of(row)
        for row in results["values"]
        if (row["likelihood"], row["axis"], row["offset"]) == (likelihood, axis, offset)
        and row["value"] is not None
    }


def barred(
    results: Results, likelihood: str, axis: str, offset: float
) -> dict[tuple[str, int], str]:
    """Who is not called best at one place, whatever its value, and why.

    Who recites the training text; and, at the diversity of real text, who is likelier than real
    text by more than two sigma: nobody can be as varied and likelier but by writing what the judge
    likes.
    """
    real = results["real"]
    found = {}
    if not offset and real["values"].get(likelihood) is not None:
        sigma = real["sigmas"][likelihood] or 0.0
        centre = Value(real["values"][likelihood], sigma, 0.0, 0.0)
        for key, value in pick(results, likelihood, axis, offset).items():
            if value.value < centre.value and rankings.are_apart(value, centre):
                found[key] = "is likelier than real text, so it writes what this judge likes"
    copied = real["values"].get("copied")
    for row in results["rows"]:
        point = row["nearest"]
        if copied is not None and "copied" in point["outside"]:
            if point["values"]["copied"] > copied:
                found[row["method"], row["evaluations"]] = "recites the training text"
    return found


_WIDTHS = "sigma", "low", "high"


def _widths(value: Value | None) -> dict[str, float | None]:
    """What `value_of` reads."""
    if value is None:
        return dict.fromkeys(_WIDTHS)
    widths = value.sigma, value.low, value.high
    return {key: _plain(one) for key, one in zip(_WIDTHS, widths, strict=True)}


def _values(
    found: Sequence[Measured], real: Measured, likelihoods: Sequence[str]
) -> Iterator[dict[str, Any]]:
    for likelihood in likelihoods:
        for axis, offsets in TARGETS.items():
            centre = real.value(axis)
            for (method, evaluations), curve in frontier.curves(found, axis, likelihood).items():
                for offset in offsets:
                    value = curve.at(centre + offset)
                    yield {
                        "likelihood": likelihood,
                        "axis": axis,
                        "offset": offset,
                        "method": method,
                        "evaluations": evaluations,
                        "value": None if value is None else value.value,
                        **_widths(value),
                        "bound": value is not None and value.bound,
                    }


def _orders(
    values: Sequence[Mapping[str, Any]], likelihoods: Sequence[str]
) -> Iterator[dict[str, Any]]:
    for axis in TARGETS:
        by_judge: dict[str, dict[tuple[str, int], float]] = {name: {} for name in likelihoods}
        for row in values:
            if (row["axis"], row["offset"]) == (axis, 0.0) and row["value"] is not None:
                by_judge[row["likelihood"]][row["method"], row["evaluations"]] = row["value"]
        numbers = sorted({evaluations for found in by_judge.values() for _, evaluations in found})
        for i, first in enumerate(likelihoods):
            for second in likelihoods[i + 1 :]:
                for evaluations in [*numbers, None]:
                    one, other = (
                        {
                            key: value
                            for key, value in by_judge[name].items()
                            if evaluations in (None, key[1])
                        }
                        for name in (first, second)
                    )
                    tau, count = rankings.kendall(one, other)
                    if count > 1:
                        yield {
                            "axis": axis,
                            "first": first,
                            "second": second,
                            "evaluations": evaluations,
                            "tau": _plain(tau),
                            "methods": count,
                        }


def _landmark(one: Measured) -> dict[str, Any]:
    return {"name": one.point.method, "count": one.count, **_numbers(one)}


def _numbers(one: Measured) -> dict[str, dict[str, float | None]]:
    names = list(one.metrics())
    return {
        "values": {name: _plain(one.value(name)) for name in names},
        "sigmas": {name: _plain(one.sigma(name)) for name in names},
    }


def _point(one: Measured, real: Measured, folder: pathlib.Path) -> dict[str, Any]:
    point = one.point
    return {
        "method": point.method,
        "evaluations": point.evaluations,
        "used": one.evaluations,
        "sampler": point.sampler,
        "settings": [list(setting) for setting in point.settings],
        "knobs": _knobs(point),
        "seed": one.seed,
        "samples": pathlib.PurePath(os.path.relpath(one.file, folder)).as_posix(),
        "sha256": one.sha256,
        "count": one.count,
        **_numbers(one),
        "outside": outside(one, real),
    }


def _knobs(point: Point) -> str:
    return ", ".join(filter(None, (point.sampler, point.knobs)))


def outside(one: Measured, real: Measured) -> list[str]:
    """Metrics outside of the 1 % to 99 % range of other real text of the same size.

    With sigma of real text, measured on R samples (or groups), n others are from it by a standard
    deviation of sigma * root of (1 + R / n).
    """
    found = []
    for name in one.metrics():
        value, centre, sigma = one.value(name), real.value(name), real.sigma(name)
        if math.isfinite(value) and math.isfinite(centre) and math.isfinite(sigma):
            ratio = real.size(name) / one.size(name)
            if abs(value - centre) > _RANGE * sigma * math.sqrt(1 + ratio) + _FINEST:
                found.append(name)
    return found


def _rows(found: Sequence[Measured], real: Measured, likelihood: str) -> Iterator[dict[str, Any]]:
    axis = DIVERSITY if math.isfinite(real.value(DIVERSITY)) else ENTROPY
    by_point: dict[Point, list[Measured]] = {}
    for one in found:
        by_point.setdefault(one.point, []).append(one)
    for (method, evaluations), curve in frontier.curves(found, ENTROPY, likelihood).items():
        own = [by_point[point] for point in curve.points]
        on_axis = frontier.curves(sum(own, []), axis, likelihood).get((method, evaluations))
        likeliest = min(own, key=lambda many: _mean(many, likelihood))
        front = [by_point[on_axis.points[at]] for at in on_axis.front()] if on_axis else []
        centre = real.value(axis)
        nearest = min(front or own, key=lambda many, centre=centre: abs(_mean(many, axis) - centre))
        yield {
            "method": method,
            "evaluations": evaluations,
            "used": float(np.mean([one.evaluations for many in own for one in many])),
            "seeds": sorted({one.seed for many in own for one in many}),
            "likeliest": _summary(likeliest, real),
            "nearest": _summary(nearest, real),
        }


def _mean(many: Sequence[Measured], metric: str) -> float:
    return float(np.mean([one.value(metric) for one in many]))


def _summary(many: Sequence[Measured], real: Measured) -> dict[str, Any]:
    """Of one point, over seeds; outside is what is so for every seed."""
    names = list(many[0].metrics())
    of_all = [set(outside(one, real)) for one in many]
    return {
        "knobs": _knobs(many[0].point),
        "count": sum(one.count for one in many),
        "values": {name: _plain(_mean(many, name)) for name in names},
        "outside": [name for name in names if all(name in one for one in of_all)],
    }


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
