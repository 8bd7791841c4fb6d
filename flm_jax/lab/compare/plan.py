"""The plan of a comparison: steps of every training, decided once and kept in plan.json.

Minutes become steps by the seconds of a training step, timed while nothing else runs. Whoever goes
on with a comparison reads the plan and times nothing, so that all seeds, and runs that were
interrupted, have the same steps.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from flm_jax import config as config_lib
from flm_jax.errors import UserError
from flm_jax.host import distributed, files
from flm_jax.lab.compare import methods as methods_lib
from flm_jax.lab.compare.asked import Asked
from flm_jax.lab.compare.methods import Stage
from flm_jax.lab.compare.rates import Rate, of_json
from flm_jax.training import dtype as dtype_lib

FILE = "plan.json"
VERSION = 1
TENTH = 0.1  # share of a stage's steps that every learning rate is tried for
LEAST_STEPS = 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a comparison has decided, by method; see `read`.

    Attributes:
      dtype: of matrix products, the same for all.
      device: on which the rates were measured.
      learning_rates: that were chosen.
      tried: held-out losses by learning rate; None: not finite.
    """

    asked: Asked
    dtype: str
    device: str = ""
    rates: Mapping[str, Rate] = dataclasses.field(default_factory=dict)
    learning_rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    tried: Mapping[str, Mapping[str, float | None]] = dataclasses.field(default_factory=dict)

    @property
    def base(self) -> config_lib.Config:
        """The config that all share, with what was decided about it."""
        base = self.asked.base
        return dataclasses.replace(base, model=dataclasses.replace(base.model, dtype=self.dtype))

    @property
    def stages(self) -> list[Stage]:
        """All trainings, in the order in which they are done."""
        return methods_lib.stages(self.asked.methods)

    def without_rate(self) -> list[str]:
        """Methods whose training step has not been timed."""
        return [m for m in dict.fromkeys(x.method for x in self.stages) if m not in self.rates]

    def settled(self, device: str) -> "Plan":
        """With the type of matrix products decided, so that no two runs decide otherwise."""
        decided = dtype_lib.settled(self.base, print)
        return dataclasses.replace(self, dtype=decided.model.dtype, device=device)

    def minutes(self, stage: Stage) -> float:
        """Of training, without compiling."""
        return stage.share * self.asked.budget_minutes

    def steps(self, stage: Stage) -> int:
        """Of a training with that share of the budget."""
        return max(LEAST_STEPS, round(60 * self.minutes(stage) / self.rates[stage.method].step_s))

    def tuning_steps(self, stage: Stage) -> int:
        return max(LEAST_STEPS, round(TENTH * self.steps(stage)))

    def to_tune(self) -> list[Stage]:
        """Objectives whose learning rate is still to be chosen."""
        if len(self.asked.learning_rates) == 1:
            return []
        found = methods_lib.tuned(self.asked.methods)
        return [one for one in found if one.method not in self.learning_rates]

    def learning_rate(self, method: str) -> float:
        """The chosen one."""
        if len(self.asked.learning_rates) == 1:
            return self.asked.learning_rates[0]
        return self.learning_rates[method]

    def with_choice(self, method: str, tried: Mapping[float, float]) -> "Plan":
        """The same with the learning rate whose held-out loss is the lowest.

        Raises UserError if none has a finite one.
        """
        best = min(tried, key=lambda rate: tried[rate])
        if not math.isfinite(tried[best]):
            listed = ", ".join(f"{rate:g}" for rate in tried)
            raise UserError(
                f"{method} has no finite held-out loss with any learning rate of {listed}; try "
                "lower ones in another --workdir (--learning_rates=1e-4,3e-4)"
            )
        losses = {
            f"{rate:g}": loss if math.isfinite(loss) else None for rate, loss in tried.items()
        }
        return dataclasses.replace(
            self,
            learning_rates={**self.learning_rates, method: best},
            tried={**self.tried, method: losses},
        )


def to_json(plan: Plan) -> str:
    """The text of plan.json; steps are in it for whoever reads along."""
    asked = plan.asked
    kept = {
        "version": VERSION,
        "budget_minutes": asked.budget_minutes,
        "try_learning_rates": list(asked.learning_rates),
        "dtype": plan.dtype,
        "device": plan.device,
        "rates": {name: dataclasses.asdict(rate) for name, rate in plan.rates.items()},
        "steps": {one.name: plan.steps(one) for one in plan.stages if one.method in plan.rates},
        "learning_rates": dict(plan.learning_rates),
        "tried": {name: dict(losses) for name, losses in plan.tried.items()},
        "config": config_lib.to_dict(asked.base),
    }
    return json.dumps(kept, indent=1)


def read(folder: pathlib.Path, asked: Asked) -> Plan | None:
    """The plan that a folder holds; None if there is none.

    Raises UserError if it is one of another comparison, or damaged. Other seeds, methods, numbers
    of evaluations and samples are none: they change nothing about what was trained.
    """
    path = folder / FILE
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); restore it from a backup") from error
    if not (text := distributed.told("the plan", text)):
        return None
    try:
        stored = json.loads(text)
        version = stored["version"]
        if version == VERSION:
            _refuse_other(path, stored, asked)
            rates = of_json(stored["rates"])
            chosen, tried = stored["learning_rates"], stored["tried"]
            return Plan(asked, stored["dtype"], stored["device"], rates, chosen, tried)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a whole plan ({type(error).__name__}: {error}); restore it from a "
            "backup, or choose another --workdir"
        ) from None
    raise UserError(
        f"{path} is of version {version}, this program reads {VERSION}; choose another --workdir"
    )


def _refuse_other(path: pathlib.Path, stored: Mapping[str, Any], asked: Asked) -> None:
    """UserError that names what the stored plan has otherwise."""
    ours = {
        "budget_minutes": asked.budget_minutes,
        "learning rates to try": list(asked.learning_rates),
    }
    theirs = {
        "budget_minutes": stored["budget_minutes"],
        "learning rates to try": stored["try_learning_rates"],
    }
    found = [f"{key}: {old} -> {ours[key]}" for key, old in theirs.items() if old != ours[key]]
    found += config_lib.differences(config_lib.from_json(stored["config"], path), asked.base)
    if found:
        raise UserError(
            f"{path} is the plan of another comparison ({'; '.join(found)}); give what it was made "
            "with, or choose another --workdir"
        )


def write(folder: pathlib.Path, plan: Plan) -> None:
    """Process 0 writes plan.json, whole or not at all."""
    if distributed.is_main():
        files.write_atomically(folder / FILE, to_json(plan))


def fresh(asked: Asked) -> Plan:
    """Nothing is decided yet."""
    return Plan(asked, asked.base.model.dtype)
