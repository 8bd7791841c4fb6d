"""A trained model as an object: `flm_jax.load(PATH)` and `.generate(...)`."""

import dataclasses
import functools
import time
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from flm_jax import config as config_lib
from flm_jax.errors import UserError
from flm_jax.experiment import Experiment
from flm_jax.flow import maps
from flm_jax.flow.at import At
from flm_jax.flow.net import Net
from flm_jax.flow.randomness import sequence_keys
from flm_jax.flow.space import Space
from flm_jax.host import numerics, progress, sharding
from flm_jax.losses.psd import semigroup_defect
from flm_jax.registry import nearest
from flm_jax.samplers.base import Sampler, Trajectory, Written
from flm_jax.sampling import Sampling, knob_fields, with_knobs
from flm_jax.tokenizers import Tokenizer

_ON_THE_DIAGONAL = (
    "this model is a flow map, which the sampler %r uses on the diagonal only (both times equal), "
    "like the model it was distilled from: take many steps, its jumps are not used"
)


Compiled = Callable[[dict[str, Any], jax.Array, jax.Array], Written]


@dataclasses.dataclass(frozen=True)
class Samples:
    """Generated texts. ``tokens`` int32 (N, L); ``seconds`` without compilation.

    ``evaluations`` of the network per text: ``steps``, or fewer on average with ``patience``.
    ``trajectory`` is that of the first batch, if it was asked for.
    """

    texts: list[str]
    tokens: np.ndarray
    steps: int
    seed: int
    seconds: float
    evaluations: float
    trajectory: Trajectory | None = None

    def rows(self) -> list[dict]:
        """One JSON-able dict per sample, as written to samples.jsonl."""
        return [
            {
                "index": i,
                "sampler_steps": self.steps,
                "seed": self.seed,
                "text": text,
                "tokens": tokens.tolist(),
            }
            for i, (text, tokens) in enumerate(zip(self.texts, self.tokens, strict=True))
        ]


class FlowModel:
    """A flow language model ready to write.

    Attributes:
      experiment: architecture, clock, spaces and defaults, from the config it was trained with.
      tokenizer: the one it was trained with.
      params: its parameters (the moving average, if the checkpoint has one).
      step: training steps behind them.
      frozen: networks that this one cannot write without, by role: the denoiser ("teacher") of a
        correction.
    """

    def __init__(
        self,
        experiment: Experiment,
        tokenizer: Tokenizer,
        params: Any,
        step: int = 0,
        mesh: jax.sharding.Mesh | None = None,
        frozen: dict[str, "FlowModel"] | None = None,
    ):
        self.experiment = experiment
        self.tokenizer = tokenizer
        self.params = params
        self.step = step
        self._mesh = mesh
        self.frozen = {}
        if experiment.loss.is_correction:
            self.frozen = dict(frozen or {})
        self._compiled: dict[tuple, Compiled] = {}

    @property
    def config(self) -> config_lib.Config:
        return self.experiment.config

    @with_knobs
    @numerics.pinned()
    def generate(
        self,
        num_samples: int = 8,
        steps: int | None = None,
        seed: int = 0,
        *,
        batch_size: int | None = None,
        length: int | None = None,
        sampler: str = "",
        sampler_options: dict[str, Any] | None = None,
        trajectory: bool = False,
        **knobs: float | None,
    ) -> Samples:
        """Writes ``num_samples`` texts in ``steps`` network evaluations each.

        What is left out comes from the config's sampler section (``steps``: the last of its list).
        Sample i depends on seed and i only, not on ``num_samples``, ``batch_size`` or devices.
        ``knobs`` are the sampling knobs (`flm_jax.sampling`), by name.

        Raises UserError for values out of range, and for knobs that the sampler does not use.
        """
        steps = self.config.sampler.steps[-1] if steps is None else steps
        rule, chosen = self.sampler(
            sampler,
            sampler_options,
            knobs | {"num_samples": num_samples, "steps": (steps,), "batch_size": batch_size},
            length,
        )
        if not 0 <= seed < 2**32:
            raise UserError(f"seed={seed} must be at least 0 and below {2**32}")
        length = self.config.data.length if length is None else length
        if length < 3:
            raise UserError(f"length={length} must be at least 3: begin mark, one token, end mark")
        sampling = chosen.sampling(steps)

        # Powers of two, so that few programs serve all numbers of samples; what is too many is cut
        # off, except from a trajectory, which shows a whole batch.
        bucket = num_samples if trajectory else 1 << (num_samples - 1).bit_length()
        batch = min(bucket, chosen.batch_size)
        if self._mesh is not None:
            devices = sharding.batch_devices(self._mesh)
            batch = -(-batch // devices) * devices
        run = self._compile(rule, sampling, batch, length, trajectory)
        key = numerics.key(seed)
        start = time.perf_counter()
        firsts = range(0, num_samples, batch)
        with progress.Waiting(f"sampling, {_steps(steps)}", parts=len(firsts)) as waiting:
            parts = [
                jax.tree.map(np.asarray, run(self._all_params(), key, jnp.int32(first)))
                for first in waiting.each(firsts)
            ]
        seconds = time.perf_counter() - start
        tokens, evaluations = (
            np.concatenate([part[i] for part in parts])[:num_samples] for i in range(2)
        )
        return Samples(
            [self.text(row) for row in tokens],
            tokens,
            steps,
            seed,
            seconds,
            float(evaluations.mean()),
            parts[0][2],
        )

    def sampler(
        self,
        name: str = "",
        options: dict[str, Any] | None = None,
        knobs: Mapping[str, Any] = types.MappingProxyType({}),
        length: int | None = None,
    ) -> tuple[Sampler, config_lib.Sampler]:
        """The sampler of the config or another one, and the config's section as it is used.

        Args:
          name: "" takes that of the config, with its options; ``options`` are set beside them.
          knobs: values of the section; None takes that of the config.
          length: tokens of a sample; None takes that of the config.

        Raises UserError unless name, values, sampler and network fit each other.
        """
        section = self.config.sampler
        name = name or section.name
        given = {knob: value for knob, value in knobs.items() if value is not None}
        known = {field.name for field in dataclasses.fields(section)}
        for knob in given.keys() - known:
            raise UserError(f"there is no sampling knob {knob!r}{nearest(knob, known)}")
        if name == section.name:
            options = {**section.options, **(options or {})}
        chosen = dataclasses.replace(section, **given)
        config_lib.validate_section(chosen)
        rule = self.experiment.sampler(name, options, chosen)
        if name != section.name:  # the config's knobs were not meant for it
            left = {
                f.name: f.default for f in knob_fields() if f.name not in rule.uses | set(given)
            }
            chosen = dataclasses.replace(chosen, **left)
        chosen = dataclasses.replace(chosen, name=name, options=options or {})
        self._check_sampler(rule, chosen, length)
        return rule, chosen

    def text(self, tokens_L: np.ndarray) -> str:
        """The text of one row; documents of a packed row are separated by a line break."""
        marks = {self.tokenizer.bos_id, self.tokenizer.eos_id, self.tokenizer.pad_id}
        ends = np.flatnonzero(np.isin(tokens_L, [mark for mark in marks if mark is not None]))
        documents = (self.tokenizer.decode(part.tolist()) for part in np.split(tokens_L, ends))
        return "\n".join(document for document in documents if document.strip())

    def net(self, params: Any, temperature: float = 1.0, *, diagonal: bool = True) -> Net:
        """The network with these parameters.

        ``diagonal``: a flow map asked at one time gets it twice (s = t), where it is a denoiser.
        """
        make = self.experiment.denoiser if diagonal else self.experiment.net
        return make(params, temperature)

    def space(self) -> Space:
        """The state space over the network's table (role "student")."""
        return self.experiment.space({"student": self.params["embed"]["table"]})

    def flow_map(self, state: jax.Array, tau_s: jax.Array, tau_t: jax.Array) -> jax.Array:
        """X_{s,t}(x_s): a state (B, L, ...) of `space` moved from tau_s to tau_t, (B,) each.

        The state of noise, at tau 0, is ``space.scatter(space.noise(keys_B, length))``.

        Raises UserError if the network has one time.
        """
        self._check_flow_map()
        space, clock = self.space(), self.experiment.clock
        net = self.net(self.params, diagonal=False)
        posterior = net(space.view(state, "student"), tau_s, tau_t).posterior
        keep, add = maps.jump(clock.to_t(tau_s), clock.to_t(tau_t))
        return space.advance(state, keep, add, posterior.probability())

    def semigroup_defect(
        self, state: jax.Array, tau_s: jax.Array, tau_u: jax.Array, tau_t: jax.Array
    ) -> jax.Array:
        """How far X_{u,t} after X_{s,u} is from X_{s,t}, (B, L); see `losses.psd`."""
        self._check_flow_map()
        nets = {"student": self.net(self.params, diagonal=False)}
        at = At(nets, self.space(), self.experiment.clock)
        return semigroup_defect(at, state, tau_s, tau_u, tau_t)

    def _check_flow_map(self) -> None:
        if not self.config.model.two_times or self.frozen:
            raise UserError("this model is no flow map (a network of two times); distil it first")

    def _compile(
        self, rule: Sampler, sampling: Sampling, batch: int, length: int, trajectory: bool
    ) -> Compiled:
        """The compiled sampler (params, key, first index) -> Written."""
        signature = rule, sampling, batch, length, trajectory
        if signature not in self._compiled:
            function = functools.partial(
                self._sample,
                rule=rule,
                sampling=sampling,
                batch=batch,
                length=length,
                trajectory=trajectory,
            )
            out = None if self._mesh is None else sharding.replicated(self._mesh)
            jitted = jax.jit(function, out_shardings=out)
            example = (self._all_params(), numerics.key(0), jnp.int32(0))
            with progress.Waiting(f"compiling the sampler for {_steps(sampling.steps)}"):
                self._compiled[signature] = jitted.lower(*example).compile()
        return self._compiled[signature]

    def _check_sampler(self, rule: Sampler, chosen: config_lib.Sampler, length: int | None) -> None:
        """UserError unless the sampler is made for this network, and the knobs for the sampler."""
        problems = config_lib.sampler_problems(self.config, rule, chosen.name, chosen, length)
        if rule.needs.teacher != ("teacher" in self.frozen):
            wanted = "the sampler 'two_model'" if self.frozen else "another sampler"
            problems.append(
                f"sampler {chosen.name!r} does not fit a model trained with the loss "
                f"{self.config.loss.name!r}; use {wanted}"
            )
        if problems:
            raise UserError("\n".join(problems))
        if self.config.model.two_times and not rule.needs.two_times:
            logging.log_first_n(logging.WARNING, _ON_THE_DIAGONAL, 1, chosen.name)

    def _all_params(self) -> dict[str, Any]:
        frozen = {role: model.params for role, model in self.frozen.items()}
        return frozen | {"student": self.params}

    def _sample(
        self,
        params: dict[str, Any],
        key: jax.Array,
        first: jax.Array,
        *,
        rule: Sampler,
        sampling: Sampling,
        batch: int,
        length: int,
        trajectory: bool,
    ) -> Written:
        index_B = first + jnp.arange(batch)
        if self._mesh is not None:
            rows = sharding.batch_sharding(self._mesh)
            index_B = jax.lax.with_sharding_constraint(index_B, rows)
        temperature = sampling.denoiser_temperature
        nets = {role: model.net(params[role], temperature) for role, model in self.frozen.items()}
        nets["student"] = self.net(
            params["student"], temperature, diagonal=not rule.needs.two_times
        )
        space = self.experiment.space({role: net.table for role, net in nets.items()})
        at = At(nets, space, self.experiment.clock)
        keys_B = sequence_keys(key, index_B)
        bos_id = self.tokenizer.bos_id
        return rule.run(at, keys_B, sampling, length, trajectory=trajectory, bos_id=bos_id)


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count > 1)}"
