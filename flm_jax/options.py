"""What several commands ask about a model, once: its files, how samples are drawn, what to measure.

The fields are the flags ``--NAME`` of `flm generate`, `evaluate` and `convert` (parsed, explained
and checked by `flm_jax.cli.options`); None takes what the model's config has. No JAX is needed.
"""

import dataclasses
from typing import Any

from flm_jax.errors import UserError
from flm_jax.knobs import knob
from flm_jax.sampling import knob_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How a checkpoint is read."""

    weights: str | None = knob(None, "ema (the default), raw, or ema:DECAY where there are several")
    step: int | None = knob(
        None, "training step of the checkpoint in a workdir; the newest by default", at_least=0
    )
    tokenizer: str | None = knob(
        None, "of an official checkpoint: gpt2, bert-base-uncased, or a tokenizer's folder"
    )
    length: int | None = knob(None, "tokens per text of an official checkpoint", at_least=3)
    heads: int | None = knob(None, "attention heads of an official checkpoint", at_least=1)
    logit_cap: float | None = knob(
        None,
        "of an official checkpoint; 0 = none, as in the code of February 2026 (default 30)",
        at_least=0,
    )
    attention_cap: float | None = knob(
        None,
        "cap of attention scores of an official MDLM checkpoint that does not tell",
        at_least=0,
    )
    clock: str | None = knob(
        None,
        "of an official flow map that does not tell (identity = FMLM+, decoding_accuracy = FMLM)",
        choices=("identity", "decoding_accuracy"),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loading(Reading):
    """Which model."""

    checkpoint: str = knob(
        "",
        "workdir of a training run (gs:// and s3://, too), hf://USER/REPO, or official .ckpt, "
        ".safetensors or folder",
        needed="--checkpoint=PATH is missing; give a run's --workdir or a .ckpt file",
    )
    teacher: str | None = knob(
        None, "where the denoiser of a correction (loss residual) is now, if it was moved"
    )

    def loading(self) -> dict[str, Any]:
        """The arguments of `inference.load`."""
        values = {field.name: vars(self)[field.name] for field in dataclasses.fields(Loading)}
        return {"path": values.pop("checkpoint"), **values}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing(Loading):
    """How samples are drawn from it. ``knobs`` are sampling knobs by name, those that are given."""

    steps: tuple[int, ...] | None = knob(
        None,
        "sampling steps (network evaluations per text), one or several: 1,8,32; not the training "
        "step, which is --step",
        at_least=1,
        nonempty=True,
    )
    num_samples: int = knob(8, "texts per number of steps", at_least=1)
    seed: int = knob(
        0, "root of the noise; sample i is the same in any batch", at_least=0, below=2**32
    )
    batch_size: int | None = knob(None, "texts written at one time", at_least=1)
    sampler: str = knob("", "sampler by name; '' = that of the config")
    sampler_options: tuple[str, ...] = knob(
        (), "options of the sampler, NAME=VALUE with commas between them, as block_length=8"
    )
    knobs: dict[str, float | str] = knob({}, "sampling knobs", each=knob_fields())

    def drawing(self) -> dict[str, Any]:
        """The arguments of `FlowModel.generate`, besides ``steps``."""
        names = "num_samples", "seed", "batch_size", "sampler"
        drawn = {name: vars(self)[name] for name in names} | self.knobs
        return drawn | {"sampler_options": self.options_of_sampler()}

    def options_of_sampler(self) -> dict[str, str]:
        """The sampler's options by name; UserError for words that are not NAME=VALUE.

        What follows without a name belongs to the value before it: thresholds=0.99,0.9.
        """
        found: dict[str, str] = {}
        last = ""
        for word in self.sampler_options:
            name, equals, value = word.partition("=")
            if not equals and last:
                found[last] += f",{word}"
                continue
            if not name or not equals:
                raise UserError(
                    f"--sampler_options={','.join(self.sampler_options)}: {name!r} is not "
                    "NAME=VALUE; write for example --sampler_options=block_length=8"
                )
            found[name], last = value, name
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(Drawing):
    """What is measured of the samples, and where it is written."""

    num_samples: int = knob(64, "texts per number of steps", at_least=1)
    scorer: str | None = knob(
        None, "folder with a GPT-2 (config.json, model.safetensors, vocabulary files)"
    )
    truth: str | None = knob(
        None,
        "the model that the training text was drawn from: a workdir of an autoregressive run, a "
        "GPT-2 folder or a Llama file; by default the one that the rows name, if it is there",
    )
    sweep: str | None = knob(
        None,
        "a sampling knob and several values of it, as temperature=0.7,0.85,1; the verdict "
        "interpolates between them",
    )
    bound: bool = knob(False, "how likely held-out text is: exact, or an upper bound on -log p")
    bound_rows: int = knob(256, "held-out rows of it", at_least=1)
    bound_kind: str = knob(
        "auto",
        "of a flow: variational (auto), or ode, by its own density",
        choices=("auto", "variational", "ode"),
    )
    bound_data: str = knob(
        "", "a second corpus for it, never trained on: a data set by name, or text files"
    )
    splits: int = knob(
        50,
        "of real text, in halves of as many rows as there are samples: the range of each metric; "
        "0 = none",
        at_least=0,
    )
    output: str | None = knob(None, "write the results as JSON to this file")
    samples: str | None = knob(
        None, "folder for the samples; by default beside --output, else not kept"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solving(Drawing):
    """Which tasks are solved, and where the results are written."""

    num_samples: int = knob(256, "tasks, from the beginning of the held-out ones", at_least=1)
    problems: str = knob("", "file or folder of GSM8K, for models of questions and programs")
    output: str | None = knob(None, "write the results as JSON to this file")
