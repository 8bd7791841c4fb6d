"""What is asked of a measurement, and the plan that follows from it and a config."""

import dataclasses
from typing import TYPE_CHECKING

from flm_jax import config as config_lib
from flm_jax.knobs import knob
from flm_jax.lab.benchmark.vocabulary import vocabulary_size

if TYPE_CHECKING:
    from flm_jax.lab.benchmark.measure import Plan

SPACES = ("projected", "onehot")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """Changes to a config's step or sampler, and how often it is timed."""

    batch: int = knob(0, "sequences; 0 = train.batch_size", at_least=0)
    length: int = knob(0, "tokens per sequence; 0 = data.length", at_least=0)
    vocab: int = knob(0, "vocabulary; 0 = that of the tokenizer", at_least=0)
    loss: str = knob("", "loss by name; '' = that of the config")
    sampling_steps: int = knob(32, "network evaluations", at_least=1)
    repeats: int = knob(5, "timed runs, after one that is not", at_least=1)

    def plan(self, config: config_lib.Config, mode: str, space: str) -> "Plan":
        """What to measure in one space; UserError for anything wrong with it."""
        from flm_jax.lab.benchmark.measure import Plan
        from flm_jax.losses import LOSSES
        from flm_jax.samplers import SAMPLERS

        change = dataclasses.replace
        batch, length = self.batch or config.train.batch_size, self.length or config.data.length
        config = change(
            config,
            space=space,
            train=change(config.train, batch_size=batch),
            data=change(config.data, length=length),
            sampler=change(config.sampler, steps=(self.sampling_steps,)),
        )
        if self.loss and self.loss != config.loss.name:  # whose options mean nothing to it
            config = change(config, loss=change(config.loss, name=self.loss, options={}))
        if space == "onehot":
            config = change(config, model=change(config.model, head_chunk=batch * length))
        # Networks beside the student are made here, at random.
        needs = config_lib.build(LOSSES, config.loss.name, config.loss.options, "loss").needs
        config = change(config, init_from="", model=change(config.model, two_times=needs.two_times))
        teachers = {"teacher": needs.teacher, "masked_teacher": needs.masked_teacher}
        config = change(config, **{role: "random" * needed for role, needed in teachers.items()})
        config_lib.validate(config, {"loss": LOSSES, "sampler": SAMPLERS})
        size = vocabulary_size(config, self.vocab)
        return Plan(mode, config, size, self.sampling_steps, self.repeats)
