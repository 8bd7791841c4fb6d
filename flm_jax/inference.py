"""A trained model as an object: `flm_jax.load(PATH)` and `.generate(...)`."""

import dataclasses
import functools
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from flm_jax import config as config_lib
from flm_jax import folders, metrics, numerics, sharding
from flm_jax.checkpoint import Checkpoints
from flm_jax.errors import UserError
from flm_jax.experiment import Experiment
from flm_jax.flow import maps
from flm_jax.flow.net import Net
from flm_jax.losses.psd import semigroup_defect
from flm_jax.samplers import base as samplers
from flm_jax.samplers.adaptive import sample_until_stable

WEIGHTS = ("ema", "raw")
TOKENIZER_FOLDER = "tokenizer"
CHECKPOINTS_FOLDER = "checkpoints"
OF_OFFICIAL = ("tokenizer", "length", "heads", "logit_cap")  # what a workdir knows by itself
_ON_THE_DIAGONAL = (
    "this model is a flow map, which the sampler %r uses on the diagonal only (both times equal), "
    "like the model it was distilled from: take many steps, its jumps are not used"
)


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
    trajectory: samplers.Trajectory | None = None

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
        tokenizer: Any,
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
        if getattr(experiment.loss, "is_correction", False):
            self.frozen = dict(frozen or {})
        self._compiled: dict[tuple, Any] = {}

    @property
    def config(self) -> config_lib.Config:
        return self.experiment.config

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
        sampler_options: dict | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        denoiser_temperature: float | None = None,
        prior_scale: float | None = None,
        grid_power: float | None = None,
        patience: int | None = None,
        trajectory: bool = False,
    ) -> Samples:
        """Writes ``num_samples`` texts in ``steps`` network evaluations each.

        What is left out comes from the config's sampler section (``steps``: the last of its list).
        Sample i depends on seed and i only, not on ``num_samples``, ``batch_size`` or devices.
        With ``patience`` n a text is finished when its tokens stayed the same for n evaluations.

        Raises UserError for values out of range.
        """
        defaults = self.config.sampler
        knobs = {
            "num_samples": num_samples,
            "steps": (defaults.steps[-1],) if steps is None else (steps,),
            "batch_size": batch_size,
            "temperature": temperature,
            "top_p": top_p,
            "denoiser_temperature": denoiser_temperature,
            "prior_scale": prior_scale,
            "grid_power": grid_power,
            "patience": patience,
        }
        knobs = {name: value for name, value in knobs.items() if value is not None}
        chosen = dataclasses.replace(defaults, **knobs)
        config_lib.validate_section(chosen)
        if not 0 <= seed < 2**32:
            raise UserError(f"seed={seed} must be at least 0 and below {2**32}")
        length = self.config.data.length if length is None else length
        if length < 3:
            raise UserError(f"length={length} must be at least 3: begin mark, one token, end mark")

        # Powers of two, so that few programs serve all numbers of samples; what is too many is cut
        # off, except from a trajectory, which shows a whole batch.
        bucket = num_samples if trajectory else 1 << (num_samples - 1).bit_length()
        batch = min(bucket, chosen.batch_size)
        if self._mesh is not None:
            devices = sharding.batch_devices(self._mesh)
            batch = -(-batch // devices) * devices
        run = self._compile(chosen, batch, length, sampler, sampler_options, trajectory)
        key = numerics.key(seed)
        start = time.perf_counter()
        firsts = range(0, num_samples, batch)
        with metrics.Waiting(f"sampling, {_steps(chosen)}", parts=len(firsts)) as waiting:
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
            chosen.steps[0],
            seed,
            seconds,
            float(evaluations.mean()),
            parts[0][2],
        )

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

    def space(self) -> Any:
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
        net = self.net(self.params, diagonal=False)
        return semigroup_defect(
            net, self.space(), self.experiment.clock, state, tau_s, tau_u, tau_t
        )

    def _check_flow_map(self) -> None:
        if not self.config.model.two_times or self.frozen:
            raise UserError("this model is no flow map (a network of two times); distil it first")

    def _compile(self, chosen, batch, length, sampler, options, trajectory):
        """The compiled sampler (params, key, first index) -> (tokens, evaluations, trajectory)."""
        rule = self.experiment.sampler(sampler, options)
        self.check_sampler(rule, sampler or chosen.name, chosen, length)
        if self.config.model.two_times and not rule.needs_two_times:
            logging.log_first_n(logging.WARNING, _ON_THE_DIAGONAL, 1, sampler or chosen.name)
        signature = (chosen.steps, batch, length, rule, trajectory, chosen.temperature)
        signature += (chosen.top_p, chosen.denoiser_temperature, chosen.prior_scale)
        signature += (chosen.grid_power, chosen.patience)
        if signature not in self._compiled:
            function = functools.partial(
                self._sample,
                rule=rule,
                batch=batch,
                length=length,
                chosen=chosen,
                trajectory=trajectory,
            )
            out = None if self._mesh is None else sharding.replicated(self._mesh)
            jitted = jax.jit(function, out_shardings=out)
            example = (self._all_params(), numerics.key(0), jnp.int32(0))
            with metrics.Waiting(f"compiling the sampler for {_steps(chosen)}"):
                self._compiled[signature] = jitted.lower(*example).compile()
        return self._compiled[signature]

    def check_sampler(
        self, rule: Any, name: str, chosen: config_lib.Sampler, length: int | None = None
    ) -> None:
        """UserError unless the sampler is made for this network, and the knobs for the sampler."""
        problems = config_lib.sampler_problems(self.config, rule, name, chosen, length)
        if getattr(rule, "needs_teacher", False) != ("teacher" in self.frozen):
            wanted = "the sampler 'two_model'" if self.frozen else "another sampler"
            problems.append(
                f"sampler {name!r} does not fit a model trained with the loss "
                f"{self.config.loss.name!r}; use {wanted}"
            )
        if problems:
            raise UserError("\n".join(problems))

    def _all_params(self) -> dict[str, Any]:
        frozen = {role: model.params for role, model in self.frozen.items()}
        return frozen | {"student": self.params}

    def _sample(self, params, key, first, *, rule, batch, length, chosen, trajectory):
        index_B = first + jnp.arange(batch)
        if self._mesh is not None:
            rows = sharding.batch_sharding(self._mesh)
            index_B = jax.lax.with_sharding_constraint(index_B, rows)
        nets = {
            role: model.net(params[role], chosen.denoiser_temperature)
            for role, model in self.frozen.items()
        }
        nets["student"] = self.net(
            params["student"], chosen.denoiser_temperature, diagonal=not rule.needs_two_times
        )
        arguments = (
            nets,
            self.experiment.space({role: net.table for role, net in nets.items()}),
            self.experiment.clock,
            samplers.sequence_keys(key, index_B),
        )
        options = {
            "steps": chosen.steps[0],
            "length": length,
            "decode": samplers.Decode(chosen.temperature, chosen.top_p),
            "prior_scale": chosen.prior_scale,
            "grid_power": chosen.grid_power,
        }
        if chosen.patience and not trajectory:
            tokens, evaluations_B = sample_until_stable(
                rule, *arguments, patience=chosen.patience, **options
            )
            return tokens, evaluations_B, None
        options["trajectory"] = trajectory
        if hasattr(rule, "run"):  # samplers of tokens bring their own loop
            tokens, path = rule.run(*arguments, **options, bos_id=self.tokenizer.bos_id)
        else:
            tokens, path = samplers.sample(rule, *arguments, **options)
        return tokens, jnp.full(index_B.shape, chosen.steps[0]), path


def _steps(chosen: config_lib.Sampler) -> str:
    return f"{chosen.steps[0]} step{'s' * (chosen.steps[0] > 1)}"


@numerics.pinned()
def load(
    path: str | pathlib.Path,
    weights: str | None = None,
    step: int | None = None,
    tokenizer: str | pathlib.Path | None = None,
    length: int | None = None,
    heads: int | None = None,
    logit_cap: float | None = None,
    teacher: str | pathlib.Path | None = None,
) -> FlowModel:
    """The model of a training run of ours, or of an official checkpoint.

    Args:
      path: the run's ``--workdir``; or an official Lightning ``.ckpt``, ``.safetensors`` file, or
        folder with config.json and model.safetensors. Nothing in such a file is ever executed.
      weights: "ema" (the moving average; the default), "raw" (the trained parameters), and for an
        official .ckpt also "ema:DECAY". Without an average the default falls back to raw weights.
      step: a certain checkpoint of a workdir; the newest good one by default.
      tokenizer, length, heads: for official checkpoints that do not tell them. The tokenizer is
        gpt2, bert-base-uncased, or a folder (see `interop.settings.text_setup`).
      logit_cap: for official checkpoints; 0 = none, as in the code of February 2026. Default 30.
      teacher: where the denoiser of a correction (loss "residual") is now, if it has been moved.

    Raises UserError if there is no such model, it is damaged, or something must be asked for.
    """
    source = folders.expanded(path)
    asked = dict(zip(OF_OFFICIAL, (tokenizer, length, heads, logit_cap), strict=True))
    if is_workdir(source):
        given = [name for name, value in asked.items() if value is not None]
        if given:
            raise UserError(
                f"{path} is a workdir, which knows its {given[0]}; leave {given[0]} away"
            )
        numerics.check_devices()
        return _load_workdir(source, weights or "ema", step, teacher)
    for name, value in (("step", step), ("teacher", teacher)):
        if value is not None:
            raise UserError(
                f"{path} is no workdir, so {name}={value} cannot be chosen; leave it away"
            )
    numerics.check_devices()
    return _load_official(source, weights, **asked)


def is_workdir(path: pathlib.Path) -> bool:
    """Whether a path is a run's workdir (not an official checkpoint); UserError if neither."""
    if not path.exists():
        raise UserError(
            f"there is no file or folder {path}; give the --workdir of a training run or an "
            "official checkpoint"
        )
    if not path.is_dir() or (path / "model.safetensors").is_file():
        return False
    from flm_jax.interop import hub_layout

    hub_layout.refuse_other_weights(path)
    if not (path / "config.json").is_file():
        raise UserError(
            f"{path} holds no config.json and no model.safetensors; give the --workdir of a "
            "training run or an official checkpoint"
        )
    return True


def _load_workdir(
    folder: pathlib.Path, weights: str, step: int | None, teacher: str | pathlib.Path | None
) -> FlowModel:
    if weights not in WEIGHTS:
        raise UserError(f"weights={weights!r} is unknown; choose {' or '.join(WEIGHTS)}")
    from flm_jax import tokenizers

    config = read_config(folder)
    tokenizer = tokenizers.load(folder / TOKENIZER_FOLDER)
    experiment = Experiment(config, tokenizer.vocab_size)
    is_correction = getattr(experiment.loss, "is_correction", False)
    if teacher is not None and not is_correction:
        raise UserError(
            f"{folder} was trained with the loss {config.loss.name!r}, which writes without its "
            "teacher; leave teacher away"
        )
    item = "params" if weights == "raw" else "ema"
    abstract = jax.eval_shape(experiment.model.init, numerics.key(0))
    with Checkpoints(checkpoints_of(config, folder)) as checkpoints:
        found, items, meta = checkpoints.restore({item: abstract}, step)
    frozen = {}
    if is_correction:
        places = [teacher] if teacher else [meta.get("teacher"), config.teacher]
        frozen["teacher"] = _load_teacher(folder, [place for place in places if place], tokenizer)
    return FlowModel(experiment, tokenizer, items[item], found, frozen=frozen)


def _load_teacher(
    folder: pathlib.Path, places: list[str | pathlib.Path], tokenizer: Any
) -> FlowModel:
    """The denoiser of the correction in a workdir, at the first of the places that exists.

    An official checkpoint holds no tokenizer; it taught with that of the correction.
    """
    paths = [folders.expanded(place) for place in places]
    path = next((path for path in paths if path.exists()), None)
    remedy = "say where it is now: teacher=DIR of flm_jax.load, --teacher=DIR of generate, evaluate"
    if path is None:
        tried = " and no ".join(dict.fromkeys(map(str, paths)))
        raise UserError(
            f"{folder} is the correction of a denoiser, its teacher, but there is no {tried}; "
            f"put it back, or {remedy}"
        )
    teacher = load(path, tokenizer=None if is_workdir(path) else folder / TOKENIZER_FOLDER)
    if teacher.frozen or teacher.tokenizer.fingerprint != tokenizer.fingerprint:
        what = "is a correction itself" if teacher.frozen else "has another tokenizer"
        raise UserError(f"{path} is not the denoiser that {folder} corrects, it {what}; {remedy}")
    return teacher


def _load_official(
    path: pathlib.Path, weights: str | None, tokenizer, length, heads, logit_cap
) -> FlowModel:
    from flm_jax.interop import official, settings

    settings.check_logit_cap(logit_cap)
    found = official.read(path, weights, heads)
    asked = None if tokenizer is None else str(tokenizer)
    tokenizer, section, length = settings.text_setup(found, asked, length)
    config = settings.config_of(found, section, length, logit_cap)
    experiment = Experiment(config, tokenizer.vocab_size)
    for notice in found.notices:
        logging.warning("%s", notice)
    params = jax.tree.map(jnp.asarray, found.params())
    return FlowModel(experiment, tokenizer, params)


def checkpoints_of(config: config_lib.Config, workdir: pathlib.Path) -> pathlib.Path | str:
    """Where the checkpoints of a run lie: in its workdir, or in a bucket."""
    return config.train.checkpoints or workdir / CHECKPOINTS_FOLDER


def read_config(folder: pathlib.Path) -> config_lib.Config:
    """The config a workdir was made with; UserError if its file is damaged."""
    path = folder / "config.json"
    try:
        return config_lib.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it from a backup") from error
