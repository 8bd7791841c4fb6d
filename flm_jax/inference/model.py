"""A trained model as an object: `flm_jax.load(PATH)` and `.generate(...)`."""

import dataclasses
import time
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax import config as config_lib
from flm_jax.errors import UserError
from flm_jax.experiment import Experiment
from flm_jax.flow import maps
from flm_jax.flow.at import STUDENT, At
from flm_jax.flow.net import Net
from flm_jax.flow.space import Space
from flm_jax.host import numerics, progress
from flm_jax.inference import choose_sampler, guides, likelihood, refining, scoring, spans
from flm_jax.inference import given as given_lib
from flm_jax.inference.given import Asked
from flm_jax.inference.programs import Program, Programs, counted
from flm_jax.losses.psd import semigroup_defect
from flm_jax.models.dit import count_parameters
from flm_jax.samplers.base import Given, Sampler, Trajectory, Written
from flm_jax.samplers.reward import Reward
from flm_jax.sampling import with_knobs
from flm_jax.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Samples:
    """Samples and their texts. ``tokens`` int32 (N, L); ``seconds`` without compilation.

    ``evaluations`` of networks per sample: ``steps``, fewer on average with ``patience``, two a
    step with a guide; ``gradients`` is how many of them had a backward pass, too (of a reward).
    ``trajectory`` is that of the first batch, if it was asked for. ``prompts`` are the texts that
    were given, one for each sample, if any were. ``lengths`` is what the lengths of gaps were
    chosen by, if they were open.
    """

    texts: list[str]
    tokens: np.ndarray
    steps: int
    seed: int
    seconds: float
    evaluations: float
    trajectory: Trajectory | None = None
    prompts: tuple[str, ...] = ()
    lengths: spans.Spans | None = None
    gradients: float = 0.0

    def rows(self) -> list[dict]:
        """One JSON-able dict per sample, as written to samples.jsonl."""
        prompts = [{"prompt": text} for text in self.prompts] or [{}] * len(self.texts)
        return [
            prompt
            | {
                "index": i,
                "sampler_steps": self.steps,
                "seed": self.seed,
                "text": text,
                "tokens": tokens.tolist(),
            }
            for i, (text, tokens, prompt) in enumerate(
                zip(self.texts, self.tokens, prompts, strict=True)
            )
        ]


class FlowModel:
    """A flow language model ready to write.

    Attributes:
      experiment: architecture, clock, spaces and defaults, from the config it was trained with.
      tokenizer: the one it was trained with.
      params: its parameters (the EMA, if the checkpoint has one).
      step: training steps behind them.
      frozen: networks that this one cannot write without, by role: the denoiser ("teacher") of a
        correction.
      programs: its compiled samplers, kept from one call to the next.
      guided: the last other model that guided it, with the compiled samplers of both.

    It can be pickled; the copy compiles anew, and samples on one device.
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
        self.frozen = {}
        if experiment.loss.is_correction:
            self.frozen = dict(frozen or {})
        experiments = {role: model.experiment for role, model in self.frozen.items()}
        experiments[STUDENT] = experiment
        self.programs = Programs(experiments, tokenizer, mesh)
        self.guided: guides.Guided | None = None

    @property
    def config(self) -> config_lib.Config:
        return self.experiment.config

    @property
    def kind(self) -> str:
        """See `choose_sampler.kind`: denoiser, flow map, ..."""
        return choose_sampler.kind(self.experiment)

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
        prompt: str | Sequence[str] | None = None,
        infill: str | Sequence[str] | None = None,
        given: Given | Asked | None = None,
        span: spans.Spans | str | None = None,
        max_span: int = spans.LONGEST,
        reward: Reward | None = None,
        **knobs: "float | str | FlowModel | None",
    ) -> Samples:
        """Draws ``num_samples`` samples in ``steps`` network evaluations each.

        With a ``prompt`` texts begin with it; an ``infill`` text has [MASK] for every token that is
        to be written, or [MASK:5] for five. Several of them give ``num_samples`` texts each.
        ``given`` tokens with their mask, (texts, length), are the general form of both.

        With ``span="free"`` the one [MASK] of an infill text stands for 1 to ``max_span`` tokens: a
        text is written for every number, and the one that fits best is taken. That costs max_span
        times as much, and `calibrate_spans` besides, unless its result is given as the span.

        What is left out comes from the config's sampler section (``steps``: the last of its list).
        Sample i depends on seed and i only, not on ``num_samples``, ``batch_size`` or devices.
        ``knobs`` are the sampling knobs (`flm_jax.sampling`), by name; the ``guide`` can be another
        model, or the path of one.

        A ``reward`` is a differentiable function of what is predicted of the texts
        (`samplers.reward.Ending`), a number for each; ``reward_scale`` or ``reward_length`` says
        how strong it is. A sampler is compiled for every function, so define it once.

        Raises UserError for values out of range, for knobs that the sampler does not use, and for
        given tokens that do not fit the model (`inference.given`).
        """
        steps = self.config.sampler.steps[-1] if steps is None else steps
        if span is not None:
            if trajectory or prompt is not None or given is not None or infill is None:
                raise UserError(f"span={span!r} is for an infill text; give one, and nothing else")
            options = dict(steps=steps, seed=seed, batch_size=batch_size, length=length)
            options |= dict(sampler=sampler, sampler_options=sampler_options, reward=reward)
            options |= knobs
            texts = [infill] if isinstance(infill, str) else infill
            return spans.fill(self, span, texts, num_samples, max_span, options)
        length = self.config.data.length if length is None else length
        length = choose_sampler.whole("length", length)
        seed = choose_sampler.whole("seed", seed)
        other, words = guides.in_words(knobs)
        rule, chosen = self.sampler(
            sampler,
            sampler_options,
            words | {"num_samples": num_samples, "steps": (steps,), "batch_size": batch_size},
            length,
        )
        if not 0 <= seed < 2**32:
            raise UserError(f"seed={seed} must be at least 0 and below {2**32}")
        if length < 3:
            raise UserError(f"length={length} must be at least 3: BOS, one token, EOS")
        num_samples, steps = chosen.num_samples, chosen.steps[0]
        asked = given_lib.asked(self.tokenizer, length, prompt, infill, given)
        if asked is not None:
            choose_sampler.check_given(self.experiment, rule, asked.mask_NL)
            asked = asked.repeated(num_samples)
            num_samples = len(asked)

        # Powers of two, so that few programs serve all numbers of samples; what is too many is cut
        # off, except from a trajectory, which shows a whole batch.
        bucket = num_samples if trajectory else 1 << (num_samples - 1).bit_length()
        batch = self.programs.whole_batch(min(bucket, chosen.batch_size))
        sampling = guides.rewarded(chosen.sampling(steps), reward)
        program = Program(rule, sampling, batch, length, trajectory, bool(asked))
        params, programs = self._all_params(), self.programs
        guided = guides.guided(self, rule, sampling, other, some_given=asked is not None)
        if guided is not None:
            params, programs = params | guided.params, guided.programs
        constant = programs.constant(rule, params)
        sample = programs.compiled(program, params, constant)
        key = numerics.key(seed)

        def written(first: int) -> Written:
            fixed = asked.part(first, batch) if asked else None
            found = sample(params, constant, key, jnp.int32(first), fixed)
            return jax.tree.map(np.asarray, found)

        start = time.perf_counter()
        firsts = range(0, num_samples, batch)
        with progress.Waiting(f"sampling, {counted(steps)}", parts=len(firsts)) as waiting:
            parts = [written(first) for first in waiting.each(firsts)]
        seconds = time.perf_counter() - start
        tokens = np.concatenate([part.tokens_BL for part in parts])[:num_samples]
        evaluations = np.concatenate([part.evaluations_B for part in parts])[:num_samples].mean()
        if asked:
            texts = [asked.read(self.tokenizer, i, row) for i, row in enumerate(tokens)]
        else:
            texts = [self.text(row) for row in tokens]
        return Samples(
            texts,
            tokens,
            steps,
            seed,
            seconds,
            float(evaluations),
            parts[0][2],
            asked.texts if asked else (),
            gradients=float(evaluations / sampling.evaluations_per_step * sampling.rewarded),
        )

    @numerics.pinned()
    def calibrate_spans(
        self,
        rows: np.ndarray | None = None,
        max_span: int = spans.LONGEST,
        gaps: int = spans.GAPS,
        **options: Any,
    ) -> spans.Spans:
        """What held-out text says about gaps of 1 to ``max_span`` tokens, for `generate`'s span.

        Known gaps in ``rows``, int32 (N, L), are filled at every length, and scored; by default the
        rows are the held-out ones of the training text. ``options`` are those of `generate`, and
        the result holds for them only. It tells how often the true length is taken.

        Raises UserError where the text is missing or too short for such gaps, and as `generate`.
        """
        return spans.calibrated(self, rows, max_span, gaps, options)

    def edit(self, text: str, keep: str, num_samples: int = 8, **options: Any) -> Samples:
        """The text with other tokens where it is not kept.

        ``keep`` names places among the text's own tokens, from 0 on: "0:5" or "0:5,8:". The rest is
        written anew, as many tokens as there were. ``options`` are those of `generate`.
        """
        length = choose_sampler.whole("length", options.get("length", self.config.data.length))
        asked = given_lib.kept(self.tokenizer, length, text, keep)
        return self.generate(num_samples, given=asked, **options)

    @numerics.pinned()
    def score(
        self,
        texts: str | Sequence[str] | Given,
        group: int = 1,
        seed: int = 0,
        length: int | None = None,
    ) -> scoring.Scores:
        """How well every token fits the others: log p with ``group`` tokens open at one time.

        A text of n tokens costs n / group evaluations; an autoregressive model is exact with one.
        Of a `Given` the tokens under its mask are the text, and the others are unknown. Positions
        behind a text are open, and filled by noise of the ``seed``.

        Raises UserError for a model that was not trained with given tokens, and as `generate`.
        """
        return scoring.score(self, texts, group, seed, length)

    def bound(
        self, rows: np.ndarray, kind: str = likelihood.AUTO, seed: int = 0
    ) -> likelihood.Bound:
        """-log p of token rows, int (N, L), per token: exact or an upper bound, which it says.

        ``kind``: "auto", or for a flow "variational" or "ode". Raises UserError for a model that
        has none, and for rows that it cannot read.
        """
        return likelihood.bound(self, rows, kind, seed)

    def refine(
        self,
        texts: str | Sequence[str] | Given,
        rounds: int = 4,
        *,
        share: float = 0.3,
        group: int = 1,
        seed: int = 0,
        **options: Any,
    ) -> Samples:
        """Texts whose least likely tokens are written again, in rounds.

        Every round scores the texts (see `score`) and opens the ``share`` of tokens that fit worst,
        a smaller share from round to round, down to share / rounds. ``options`` are those of
        `generate`; all evaluations are counted, those of the scores too.
        """
        return refining.refine(self, texts, rounds, share, group, seed, options)

    def sampler(
        self,
        name: str = "",
        options: dict[str, Any] | None = None,
        knobs: Mapping[str, Any] = types.MappingProxyType({}),
        length: int | None = None,
    ) -> tuple[Sampler, config_lib.SamplerConfig]:
        """The sampler of the config or another one, and the config's section as it is used.

        Args:
          name: "" takes that of the config, with its options; ``options`` are set beside them.
          knobs: values of the section; None takes that of the config.
          length: tokens of a sample; None takes that of the config.

        Raises UserError unless name, values, sampler and network fit each other.
        """
        with_teacher = "teacher" in self.frozen
        return choose_sampler.choose(self.experiment, with_teacher, name, options, knobs, length)

    def text(self, tokens_L: np.ndarray) -> str:
        """The text of one row; documents of a packed row are separated by a line break.

        A row that is one document (``data.packing=one_per_row``) ends at its end mark, or where
        it is filled up.
        """
        if self.config.data.packing.startswith("one_per_row"):
            ends = self.tokenizer.eos_id, self.tokenizer.pad_id
            ended = np.flatnonzero(np.isin(tokens_L, [e for e in ends if e is not None]))
            tokens_L = tokens_L[: ended[0]] if ended.size else tokens_L
        special = self.tokenizer.bos_id, self.tokenizer.eos_id, self.tokenizer.pad_id
        ends = np.flatnonzero(np.isin(tokens_L, [token for token in special if token is not None]))
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
            raise UserError(
                "this model is not a flow map (a network of two times); distil it first"
            )

    def _all_params(self) -> dict[str, Any]:
        frozen = {role: model.params for role, model in self.frozen.items()}
        return frozen | {"student": self.params}

    def __repr__(self) -> str:
        tokenizer = self.tokenizer
        return (
            f"FlowModel({self.kind}, {count_parameters(self.params):,} parameters, vocabulary "
            f"{self.experiment.vocab_size:,}, length {self.config.data.length}, tokenizer "
            f"{tokenizer.name}, training step {self.step})"
        )
