"""What is asked of a measurement, and the plan that follows from it and a config."""

import dataclasses
from typing import TYPE_CHECKING

from flm_jax import config as config_lib
from flm_jax.errors import UserError
from flm_jax.knobs import knob
from flm_jax.lab.benchmark.vocabulary import vocabulary_size

if TYPE_CHECKING:
    from flm_jax.lab.benchmark.measure import Plan

SPACES = ("projected", "onehot")
REPEATS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """Changes to a config's step or sampler, and how often it is timed."""

    batch: int = knob(0, "sequences; 0 = train.batch_size", at_least=0)
    length: tuple[int, ...] = knob(
        (0,), "tokens per sequence (latency: one or several); 0 = data.length", at_least=0,
        nonempty=True,
    )  # fmt: skip
    vocab: int = knob(0, "vocabulary; 0 = that of the tokenizer", at_least=0)
    width: int = knob(0, "width, with heads of the same size; 0 = model.width", at_least=0)
    loss: str = knob("", "train: loss by name; '' = that of the config")
    sampler: str = knob("", "sample: sampler by name; '' = that of the config")
    sampling_steps: int = knob(
        32, "network evaluations (autoregressive: one for every token after the first)", at_least=1
    )
    repeats: int = knob(0, "timed runs, after one that is not; 0 = 5, latency 20", at_least=0)

    def plan(self, config: config_lib.Config, mode: str, space: str) -> "Plan":
        """What to measure in one space; UserError for anything wrong with it."""
        from flm_jax.lab.benchmark.measure import Plan
        from flm_jax.losses import LOSSES
        from flm_jax.samplers import SAMPLERS

        other = {"train": "sampler", "sample": "loss"}[mode]
        if given := vars(self)[other]:
            raise UserError(f"--{other}={given} has no part in what {mode} measures; omit it")
        first, *more = self.length
        if more:
            listed = ",".join(map(str, self.length))
            raise UserError(f"--length={listed}: only latency takes several; give one")
        change = dataclasses.replace
        batch, length = self.batch or config.train.batch_size, first or config.data.length
        config = change(
            config,
            space=space,
            train=change(config.train, batch_size=batch),
            data=change(config.data, length=length),
            model=self._resized(config.model),
        )
        if space == "onehot":
            config = change(config, model=change(config.model, head_chunk=batch * length))
        # What is not measured need not fit: training asks no sampler, sampling no loss.
        if mode == "train":
            tables = {"loss": LOSSES}
            if self.loss and self.loss != config.loss.name:  # whose options mean nothing to it
                config = change(config, loss=change(config.loss, name=self.loss, options={}))
            needs = config_lib.build(LOSSES, config.loss.name, config.loss.options, "loss").needs
            two_times, steps = needs.two_times, self.sampling_steps
        else:
            tables = {"sampler": SAMPLERS}
            section = config.sampler
            if self.sampler and self.sampler != section.name:
                section = config_lib.SamplerConfig(name=self.sampler)
            rule = config_lib.build_sampler(SAMPLERS, section.name, section.options, section)
            needs, steps = rule.needs, rule.steps_for(length) or self.sampling_steps
            config = change(config, sampler=change(section, steps=(steps,)))
            # A flow map can be sampled as the denoiser that it is on its diagonal.
            two_times = needs.two_times or config.model.two_times
        model = change(
            config.model, two_times=two_times, causal=needs.causal, mask_token=needs.mask_token
        )
        # Networks beside the student are made here, at random.
        teachers = {"teacher": needs.named_teacher, "masked_teacher": needs.masked_teacher}
        config = change(config, **{role: "random" * needed for role, needed in teachers.items()})
        config = change(config, init_from="", model=model)
        config_lib.validate(config, tables)
        return Plan(
            mode, config, vocabulary_size(config, self.vocab), steps, self.repeats or REPEATS
        )

    def _resized(self, model: config_lib.ModelConfig) -> config_lib.ModelConfig:
        """The network in another width, with more or fewer heads where their size divides it."""
        if not self.width or model.heads < 1:  # the latter is refused with all else
            return model
        size = max(1, model.width // model.heads)
        heads = model.heads if self.width % size else self.width // size
        return dataclasses.replace(model, width=self.width, heads=heads)
