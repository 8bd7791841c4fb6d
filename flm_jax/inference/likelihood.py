"""How likely a model finds given text: exact where it can be, else an upper bound on -log p.

    autoregressive            =    the sum over tokens
    denoiser                  <=   variational bound (default), or that of the flow's own density
    flow map                  <=   the same of its diagonal; its jumps have none
    masked, uniform diffusion <=   their variational bounds in continuous time

All are of whole rows of a known length, divided by what a judge would count: every token behind the
first of its row, which is given, up to the padding. (The flow and uniform diffusion must write the
first token, and all but the autoregressive ones must write the padding without knowing where the
text ends: whatever that costs is in the bound.) docs/numerics.md derives them.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from flm_jax.data import DATASETS, Data, fixed_batch, load_data
from flm_jax.errors import UserError
from flm_jax.host import numerics
from flm_jax.inference import choose_sampler, flow_bounds, token_bounds
from flm_jax.losses import DCD, UniformDiffusion
from flm_jax.options import Evaluation
from flm_jax.tokenizers import Tokenizer

if TYPE_CHECKING:
    from flm_jax.inference.model import FlowModel

EXACT, VARIATIONAL, ODE, MASKED, UNIFORM = "exact", "variational", "ode", "masked", "uniform"
AUTO = "auto"
TIMES = 16  # random times of each row
STEPS = 32  # of the flow's differential equation
_SEED = 0  # of the choice of rows


@dataclasses.dataclass(frozen=True)
class Bound:
    """What a model pays for some rows.

    Attributes:
      nats_per_token: all nats by all counted tokens; an upper bound unless ``kind`` is "exact".
      nats_per_character: the same nats by the characters of the decoded rows.
      standard_error: of the first, over rows and all that was drawn for them; nan for one row.
      kind: exact, variational, ode, masked or uniform.
      label: the same in words, with what it depends on.
      rows: how many were counted.
      tokens: likewise.
      nats_N: of every row, float64: for comparisons of two models on the same rows.
    """

    nats_per_token: float
    nats_per_character: float
    standard_error: float
    kind: str
    label: str
    rows: int
    tokens: int
    nats_N: np.ndarray = dataclasses.field(repr=False, compare=False)

    @property
    def sign(self) -> str:
        return "=" if self.kind == EXACT else "<="

    def __str__(self) -> str:
        error = f" ± {self.standard_error:.3f}" if self.rows > 1 else ""
        return f"{self.sign} {self.nats_per_token:.3f}{error}"

    def facts(self) -> dict[str, Any]:
        """For JSON, None where a number is none: everything but the single rows."""
        facts = {field.name: vars(self)[field.name] for field in dataclasses.fields(self)}
        del facts["nats_N"]
        for name in ("nats_per_token", "nats_per_character", "standard_error"):
            facts[name] = facts[name] if math.isfinite(facts[name]) else None
        return facts | {"text": str(self)}


@numerics.pinned()
def bound(
    model: "FlowModel",
    rows_NL: np.ndarray,
    kind: str = AUTO,
    seed: int = 0,
    *,
    times: int = TIMES,
    steps: int = STEPS,
) -> Bound:
    """The likelihood of rows of token ids, or a bound of it; `FlowModel.bound`.

    Args:
      rows_NL: int (N, L), each a whole row as the model was trained on.
      kind: "auto", or for a flow "variational" or "ode".
      times: random times of every row, for all but "exact" and "ode".
      steps: of the differential equation.

    Raises UserError for a model without a bound, for a kind that it does not have, and for rows
    that it cannot read.
    """
    tokens_NL = _checked(model, rows_NL)
    seed, times = choose_sampler.whole("seed", seed), choose_sampler.whole("times", times)
    steps = choose_sampler.whole("steps", steps)
    for name, value in (("times", times), ("steps", steps)):
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1")
    kind = _kind(model, kind)
    often = f"{times} random time{'s' * (times > 1)} a row"
    if kind == EXACT:
        nats_N, label = token_bounds.exact(model, tokens_NL), "exact"
    elif kind == MASKED:
        nats_N = token_bounds.masked(model, tokens_NL, times, seed)
        label = f"bound of masked diffusion, {often}"
    elif kind == UNIFORM:
        nats_N = token_bounds.uniform(model, tokens_NL, times, seed)
        label = f"bound of uniform diffusion, {often}"
    else:
        whose = "the flow map's diagonal" if model.config.model.two_times else "the flow"
        if kind == ODE:
            found = flow_bounds.ode(model, tokens_NL, steps, seed)
            how = f"bound of {whose} by its own density, up to the error of {steps} Heun steps"
        else:
            found = flow_bounds.variational(model, tokens_NL, times, seed)
            how = f"variational bound of {whose}, {often}"
        nats_N, label = found.nats_N, f"{how} up to t = {found.last_t:.3g}"
    return _summed(model.tokenizer, tokens_NL, nats_N, kind, label)


def counted(tokens_NL: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Which tokens count, bool (N, L): all but the first, up to the padding.

    A PAD that is EOS or BOS, too, is text.
    """
    counts_NL = np.ones(tokens_NL.shape, bool)
    if tokenizer.pad_id not in (None, tokenizer.bos_id, tokenizer.eos_id):
        text_NL = tokens_NL != tokenizer.pad_id
        counts_NL = np.logical_or.accumulate(text_NL[:, ::-1], axis=1)[:, ::-1].copy()
    counts_NL[:, 0] = False
    return counts_NL


def of_held_out(model: "FlowModel", data: Data, options: Evaluation) -> Bound:
    """The `bound` of as many held-out rows as asked for, always the same; all if there are fewer.

    Raises UserError for rows with a given part, and as `bound`.
    """
    held_out = data.rows["valid"]
    if held_out.has_given:
        raise UserError(
            "these rows have a part that is given, and a bound is of whole rows; omit --bound"
        )
    tokens_NL = fixed_batch(held_out, min(options.bound_rows, len(held_out)), _SEED)["tokens"]
    return bound(model, tokens_NL, options.bound_kind, options.seed)


def corpora(model: "FlowModel", own: Data | None, options: Evaluation) -> dict[str, Data]:
    """The corpora whose held-out rows are asked for, by name: its own, then the second one.

    Raises UserError if the model has no bound of this kind, or the second one cannot be read.
    """
    if options.bound_data and not options.bound:
        raise UserError(f"--bound_data={options.bound_data} needs --bound; add it")
    if not options.bound:
        return {}
    _kind(model, options.bound_kind)
    found = {} if own is None else {"held-out text": own}
    if options.bound_data:
        found[options.bound_data] = second_corpus(model, options.bound_data)
    if not found:
        raise UserError("--bound needs text, and there is no training text; give --bound_data")
    return found


def second_corpus(model: "FlowModel", name: str) -> Data:
    """Rows of another corpus in the model's tokens, cut as its own were.

    ``name`` is a data set, of which they are the held-out ones, or a text file, or a folder of
    such, of which they are all. Raises UserError for neither.
    """
    section = model.config.data
    of: dict[str, Any] = {"name": name}
    if name not in DATASETS:  # all of it is held out
        of = {"name": "text_files", "options": {"path": name, "valid_path": name}}
    cut = {"length": section.length, "packing": section.packing, "cache_dir": section.cache_dir}
    return load_data({**of, **cut}, {}, splits=("valid",), tokenizer=model.tokenizer)


def sentence(facts: Mapping[str, Any]) -> str:
    """What `Bound.facts` of a "corpus" say, for people."""
    per_character = facts["nats_per_character"]
    per_character = "" if per_character is None else f", {per_character:.3f} per character"
    return (
        f"{facts['corpus']}: {facts['text']} nats per token{per_character}\n"
        f"    ({facts['label']}; {facts['rows']} rows, {facts['tokens']} tokens)"
    )


def _kind(model: "FlowModel", kind: str) -> str:
    experiment = model.experiment
    if experiment.loss.is_correction:
        raise UserError(
            "the correction of a denoiser has no likelihood bound; take that of the denoiser that "
            "it corrects"
        )
    if experiment.config.model.causal:
        own = (EXACT,)
    elif experiment.config.model.mask_token:
        own = (MASKED,)
    elif experiment.has_denoiser:
        own = (VARIATIONAL, ODE)
    elif isinstance(experiment.loss, UniformDiffusion | DCD):
        own = (UNIFORM,)
    else:
        name = experiment.config.loss.name
        raise UserError(f"a model trained by loss {name!r} has no likelihood bound here")
    if kind == AUTO:
        return own[0]
    if kind not in own:
        raise UserError(
            f"kind={kind!r} is no likelihood of this model ({model.kind}); take "
            f"{' or '.join((AUTO, *own))}"
        )
    return kind


def _checked(model: "FlowModel", rows_NL: np.ndarray) -> np.ndarray:
    tokens_NL = np.asarray(rows_NL)
    if tokens_NL.ndim != 2 or len(tokens_NL) < 1 or tokens_NL.shape[1] < 2:
        raise UserError(f"rows must be token ids (N, L), L >= 2, not an array {tokens_NL.shape}")
    if not np.issubdtype(tokens_NL.dtype, np.integer):
        raise UserError(f"rows must be token ids, whole numbers, not {tokens_NL.dtype}")
    size = model.tokenizer.vocab_size
    if tokens_NL.min() < 0 or tokens_NL.max() >= size:
        wrong = tokens_NL[(tokens_NL < 0) | (tokens_NL >= size)][0]
        raise UserError(f"rows hold the token {wrong}, but the model's are 0 to {size - 1}")
    return tokens_NL.astype(np.int32)


def _summed(
    tokenizer: Tokenizer, tokens_NL: np.ndarray, nats_N: np.ndarray, kind: str, label: str
) -> Bound:
    counts_N = counted(tokens_NL, tokenizer).sum(axis=1)
    rows, tokens = len(nats_N), int(counts_N.sum())
    if not tokens:
        raise UserError("these rows hold no token behind their first one")
    characters = sum(len(tokenizer.decode(row.tolist())) for row in tokens_NL)
    nats = float(nats_N.sum())
    per_token = nats / tokens
    spread = float(((nats_N - per_token * counts_N) ** 2).sum())
    error = (spread * rows / (rows - 1)) ** 0.5 / tokens if rows > 1 else math.nan
    per_character = nats / characters if characters else math.nan
    return Bound(per_token, per_character, error, kind, label, rows, tokens, nats_N)
