"""The training runs of a comparison: ordinary ones, each in a folder of its own."""

import dataclasses
import json
import math
import pathlib

from flm_jax import config as config_lib
from flm_jax import experiment
from flm_jax.errors import UserError
from flm_jax.host import compiled, distributed, runlog
from flm_jax.lab.compare.methods import METHODS
from flm_jax.training import incidents, loop, results
from flm_jax.training.session import Session
from flm_jax.training.step import TrainState

RUNS, TUNING, COMPILED = "runs", "tuning", "compiled"  # folders of a comparison
SAVES, LOGS = 10, 100  # checkpoints and log lines of a run, at least
SHOWN = 8  # evaluations of the samples that the run itself shows, at most
NEVER = 2**31 - 1


def of_method(base: config_lib.Config, name: str) -> config_lib.Config:
    """The base as the config of a method: another objective, its network and its sampler.

    Without the run that it starts from.
    """
    method = METHODS[name]
    needs = method.needs
    tree = config_lib.to_dict(base)
    tree |= {"stage": name, "evals": (), "eval_options": {}}
    tree["loss"] = {"name": method.loss, "options": dict(method.options)}
    tree["model"] |= {
        "two_times": needs.two_times,
        "causal": needs.causal,
        "mask_token": needs.mask_token,
        "self_conditioning": base.model.self_conditioning and needs.self_conditioning,
        "loss_weighting": False,
    }
    tree["sampler"] = {
        "name": method.sampler,
        "steps": (base.data.length - 1 if needs.causal else SHOWN,),
        "num_samples": base.sampler.num_samples,
        "batch_size": base.sampler.batch_size,
    }
    return config_lib.resolve(tree)


@dataclasses.dataclass(frozen=True)
class Training:
    """One training of a comparison.

    Attributes:
      folder: of the comparison, absolute.
      name: of the run's folder in it: "runs/flm_1".
      source: the name of the run that it starts from; "" = none.
      trial: whether it only tries a learning rate.
    """

    folder: pathlib.Path
    name: str
    method: str
    seed: int
    steps: int
    learning_rate: float
    source: str = ""
    trial: bool = False

    @property
    def workdir(self) -> pathlib.Path:
        return self.folder / self.name

    def config(self, base: config_lib.Config) -> config_lib.Config:
        """Its config; schedules and intervals are fitted to its number of steps."""
        method, tree = METHODS[self.method], config_lib.to_dict(of_method(base, self.method))
        train, optim = tree["train"], tree["optim"]
        tree["seed"] = self.seed
        optim["learning_rate"] = self.learning_rate
        optim["warmup_steps"] = min(optim["warmup_steps"], self.steps // 10)
        train |= {"steps": self.steps, "max_minutes": 0.0, "eval_every": 0, "sample_every": 0}
        train |= {"keep_latest": 1, "keep_best": 0}
        for key, most in (("save_every", SAVES), ("log_every", LOGS)):
            train[key] = min(train[key] or NEVER, max(1, math.ceil(self.steps / most)))
        train["compilation_cache"] = str(self.folder / COMPILED)
        if self.trial:  # a step too far is not the end yet
            train["nonfinite"] = "skip"
        if method.rounds:
            every = max(1, self.steps // method.rounds)
            tree["loss"]["options"] |= {"rounds": method.rounds, "every": every}
        if self.source:
            source = str(self.folder / self.source)
            taught = method.needs.named_teacher
            tree |= {"init_from": "teacher" if taught else source}
            tree |= {"teacher": source if taught else ""}
        return config_lib.resolve(tree)

    @property
    def finished(self) -> bool:
        """Whether it has come to its end."""
        try:
            facts = json.loads((self.workdir / "run.json").read_text(encoding="utf-8"))
            return facts["stopped"] == "complete" and facts["step"] >= self.steps
        except (OSError, ValueError, KeyError):
            return False

    @property
    def exploded(self) -> bool:
        """Whether it met numbers that are not finite."""
        return any((self.workdir / incidents.FOLDER).glob("*"))

    def held_out(self) -> float:
        """Its last held-out loss, by which learning rates are compared; infinity if it has none.

        Of flow maps, whose loss is that of the denoiser on their diagonal, with the semigroup
        defect, which says how good their jumps are.
        """
        found = [row for row in runlog.read(self.workdir) if "eval/loss" in row]
        if not found:
            return math.inf
        loss = found[-1]["eval/loss"] + found[-1].get("eval/semigroup_defect", 0.0)
        return loss if math.isfinite(loss) else math.inf


def train(training: Training, base: config_lib.Config) -> None:
    """Trains, or goes on, unless it is finished."""
    if training.finished:
        return
    config = training.config(base)
    config_lib.validate(config, experiment.tables())
    try:
        code = loop.train(config, training.workdir, _finish)
    except UserError as error:  # a learning rate that is too high is no end, only no good
        if not (training.trial and training.exploded):
            raise
        code = 0
        if distributed.is_main():
            print(error, flush=True)
    compiled.forget()
    if code:
        raise SystemExit(code)
    distributed.meet("a run has ended")


def _finish(session: Session, state: TrainState, step: int, why: str) -> None:
    """The end of a run: its samples are drawn later, by the comparison."""
    results.write_run(session, step, why)


def check(training: Training, base: config_lib.Config) -> None:
    """UserError if its config does not fit together."""
    try:
        config_lib.validate(training.config(base), experiment.tables())
    except UserError as error:
        raise UserError(f"{training.method}: {error}") from None
