"""The kinds init and plus_init: fresh parameters, and those of a student of a teacher."""

import dataclasses
from typing import Any

import jax
import numpy as np

from flm_jax import config
from flm_jax.host import numerics
from flm_jax.interop import hub_layout, layout, official
from flm_jax.lab.parity import networks
from flm_jax.lab.parity.checks import Checks
from flm_jax.lab.parity.goldens import Case, GoldenError
from flm_jax.models import dit, transfer

STANDARD_ERRORS = 5.0
ORDER = "__order__"
EXACT = 1e-7  # parameters that start at one number: zeros and ones


def random(case: Case, checks: Checks) -> None:
    """Mean, standard deviation and range of every parameter, and the order of the parameters.

    Both sides are one draw, so a difference has sqrt(2) times the error of either.
    """
    content = case.json()
    if not isinstance(content, dict) or not content.get("stats"):
        raise GoldenError("the file holds no statistics")
    for network, stats in content["stats"].items():
        stats = dict(stats)
        order = stats.pop(ORDER, list(stats))
        shapes = {name: tuple(stats[name]["shape"]) for name in order}
        sizes = layout.sizes_of(shapes, case.path)
        model = networks.model(case, sizes, 0.0)
        with checks.precision(32):
            ours = networks.official(jax.jit(model.init)(numerics.key(0)), sizes)
            checks.exact(f"{network}: order of the parameters", list(ours), order)
            for name in order:
                _compare(checks, f"{network}: {name}", ours[name], stats[name])


def _compare(checks: Checks, name: str, ours: np.ndarray, stats: dict[str, Any]) -> None:
    if list(ours.shape) != stats["shape"]:
        checks.fail(name, f"shape {ours.shape} instead of {stats['shape']}")
        return
    values = ours.astype(np.float64).ravel()
    deviation = float(values.std())
    found = values.mean(), deviation, values.min(), values.max()
    expected = [stats[key] for key in ("mean", "std", "min", "max")]
    if deviation == 0.0 or stats["std"] == 0.0:
        checks.close(name, found, expected, EXACT)
        return
    kurtosis = np.mean((values - values.mean()) ** 4) / deviation**4
    n, spread = values.size, values.max() - values.min()
    errors = np.array(
        [
            deviation / np.sqrt(n),
            deviation * np.sqrt((kurtosis - 1.0) / (4.0 * n)),
            spread / n,  # of the ends of a uniform distribution
            spread / n,
        ]
    )
    tolerances = STANDARD_ERRORS * np.sqrt(2.0) * errors
    for key, mine, recorded, tolerance in zip(
        ("mean", "std", "min", "max"), found, expected, tolerances, strict=True
    ):
        checks.close(f"{name} {key}", mine, recorded, tolerance)


def student(case: Case, checks: Checks) -> None:
    """Which of a student's parameters are the teacher's, zero, or as they were."""
    content = case.json()
    if not isinstance(content, dict) or not content:
        raise GoldenError("the file names no students")
    for kind, expected in content.items():
        weighted = any(name.startswith("learnable_loss_weighting") for name in expected)
        blocks = {name.split(".")[1] for name in expected if name.startswith("blocks.")}
        settings = config.ModelConfig(width=8, depth=len(blocks), heads=2, cond_dim=4)
        of_two = dataclasses.replace(settings, two_times=True, loss_weighting=weighted)
        teacher, own = dit.build(settings, 11), dit.build(of_two, 11)
        source, fresh = (
            jax.tree.map(
                lambda x, s=seed: np.asarray(x) + 0.01 * s,
                jax.jit(model.init)(numerics.key(seed)),
            )
            for seed, model in ((1, teacher), (2, own))
        )
        found = transfer.student_from(fresh, source, correction=kind == "two_model")
        sizes = layout.Sizes(
            vocab_size=11, hidden_size=8, cond_dim=4, depth=len(blocks), mlp_ratio=4,
            two_times=True, loss_weighting=weighted,
        )  # fmt: skip
        found, before = networks.official(found, sizes), networks.official(fresh, sizes)
        taken = networks.official(transfer.student_from(fresh, source), sizes)
        for name, status in expected.items():
            if name == layout.INV_FREQ:
                continue
            state = "neither"
            if not np.any(found[name]):
                state = "zero"
            elif np.array_equal(found[name], before[name]):
                state = "unchanged"
            elif np.array_equal(found[name], taken[name]):
                state = "teacher"
            checks.exact(f"{kind}: {name} is {status}", state == status, True)
        checks.exact(f"{kind}: names", set(found), set(expected) - {layout.INV_FREQ})


def any_order_students(case: Case, checks: Checks) -> None:
    """Where each parameter of a student comes from: its teacher, or nowhere."""
    content = case.json()
    sizes = layout.Sizes(
        vocab_size=12, hidden_size=8, cond_dim=4, depth=2, mlp_ratio=4, two_times=True,
        loss_weighting=False,
    )  # fmt: skip
    for kind, expected in content.items():
        masked = kind == "mdlm"
        fresh, teacher = (
            jax.tree.map(lambda x, s=seed: np.asarray(x) + 0.01 * s, params)
            for seed, params in enumerate(_models(case, sizes, masked))
        )
        source = transfer.without_mask(teacher) if masked else teacher
        found = transfer.student_from(fresh, source, second_time_heard=masked)
        found, before = networks.official(found, sizes), networks.official(fresh, sizes)
        for name, status in expected["tensors"].items():
            taken = not np.array_equal(found[name], before[name])
            checks.exact(f"{kind}: {name}: {status}", taken, status.startswith("teacher"))
        checks.exact(f"{kind}: names", set(found), set(expected["tensors"]))


def _models(case: Case, sizes: layout.Sizes, masked: bool):
    """Parameters of a student, and of its teacher."""
    teacher = dataclasses.replace(sizes, vocab_size=13, two_times=False) if masked else sizes
    for seed, own in enumerate((sizes, teacher)):
        yield networks.model(case, own, 0.0, heads=2).init(numerics.key(seed))


def from_masked(case: Case, checks: Checks) -> None:
    """A student that starts from a masked diffusion model, number by number."""
    source = official.read(case.other("plus_ckpt/mdlm").path)
    fresh = hub_layout.to_params(networks.state(case))
    params = transfer.without_mask(source.params())
    sizes = networks.sizes_of(networks.state(case))
    expected = networks.state(case, "out/param/")
    found = networks.official(transfer.student_from(fresh, params, second_time_heard=True), sizes)
    checks.exact("names", sorted(found), sorted(expected))
    for name, array in found.items():
        checks.exact(name, array, expected[name])
    ours = networks.official(transfer.student_from(fresh, params), sizes)
    silent = "sigma_map_prime.mlp.2."
    changed = sorted(name for name in ours if not np.array_equal(ours[name], found[name]))
    checks.exact("ours hears the second time later", changed, [f"{silent}bias", f"{silent}weight"])
