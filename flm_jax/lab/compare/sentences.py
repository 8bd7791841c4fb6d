"""What holds and what does not, in plain sentences, from results.json."""

import math

from flm_jax.lab.compare import findings, rankings, tables
from flm_jax.lab.compare.findings import Results
from flm_jax.lab.compare.frontier import DIVERSITY, ENTROPY, Value
from flm_jax.lab.compare.rankings import SIGMAS
from flm_jax.lab.compare.tables import NAMES, judge_of

_AGREED = 0.999  # of Kendall's tau


def every(results: Results) -> list[str]:
    """For each number of evaluations who is better; then what all that rests on."""
    said = []
    for number in tables.numbers(results):
        said += _at(results, number)
    return said + _judges(results) + _seeds(results) + _strange(results)


def _at(results: Results, number: int) -> list[str]:
    """The verdict on either axis."""
    names = [row["method"] for row in results["rows"] if row["evaluations"] == number]
    evaluations = f"{number} evaluation{'s' * (number != 1)}"
    said, best = [], set()
    for axis, name in NAMES.items():
        place = results["headline"], axis, 0.0
        values = tables.contenders(results, *place, number)
        out = {
            method: why
            for (method, n), why in findings.barred(results, *place).items()
            if n == number and method in names
        }
        away = [method for method in names if method not in values and method not in out]
        words = [_verdict(values)]
        words += [f"not reached by {', '.join(away)}"] if away else []
        words += [f"{method} {why}" for method, why in out.items()]
        said.append(f"{evaluations}, at the {name} of real text: {'; '.join(words)}.")
        found = rankings.verdict(values)
        best |= {found.best} if found is not None and found.best else set()
    if len(best) > 1:
        said.append(
            f"{evaluations}: the two disagree, and distinct-4 is the harder one to buy: an entropy "
            "within a sample does not see that samples are alike."
        )
    return said


def _verdict(values: dict[str, Value]) -> str:
    if not values:
        return "no method"
    order = sorted(values, key=lambda name: values[name].value)
    first = f"{order[0]} {_shown(values[order[0]])}"
    found = rankings.verdict(values)
    if found is None:
        return f"only {first}"
    if found.best:
        ahead = values[order[1]].value - values[order[0]].value
        return f"{first} is better than all others, {ahead:.2f} before {order[1]}"
    return (
        f"{first}, the least, but {', '.join(found.tied)} cannot be told from it ({SIGMAS:g} sigma)"
    )


def _shown(value: Value) -> str:
    at_most = "at most " * value.bound
    interval = f", 95 %: {value.low:.2f} to {value.high:.2f}" * math.isfinite(value.sigma)
    return f"({at_most}{value.value:.2f} nats a token{interval})"


def _judges(results: Results) -> list[str]:
    whole = [one for one in results["orders"] if one["evaluations"] is None and one["tau"]]
    axis = DIVERSITY if any(one["axis"] == DIVERSITY for one in whole) else ENTROPY
    whole = [one for one in whole if one["axis"] == axis]
    if len(results["judges"]) < 2:
        return ["There is one judge, so nothing is known of how much the order depends on it."]
    said = []
    for one in whole:
        what = f"{judge_of(one['first'])} and {judge_of(one['second'])}"
        if one["tau"] > _AGREED:
            said.append(f"{what} put all that reach real text's {NAMES[axis]} into one order.")
        else:
            said.append(
                f"{what} do not put them into one order (Kendall's tau {one['tau']:.2f}): what is "
                "said here is said by the first judge."
            )
    return said


def _seeds(results: Results) -> list[str]:
    counts = {len(row["seeds"]) for row in results["rows"]}
    if min(counts, default=0) > 2:
        return []
    if min(counts, default=0) == 1:
        return [
            "One seed: nothing is known of the spread between trainings, so differences are "
            "between these trained networks, not between methods."
        ]
    return ["Two seeds: the spread between trainings is hardly known, so intervals are very wide."]


def _strange(results: Results) -> list[str]:
    """Rows without any metric outside of real text's range are the exception; who they are."""
    clean = [
        f"{row['method']} with {row['evaluations']}"
        for row in results["rows"]
        if not row["nearest"]["outside"]
    ]
    if not clean:
        return ["No method writes text that lies within the range of real text in every metric."]
    return [f"Within the range of real text in every metric: {', '.join(clean)}."]
