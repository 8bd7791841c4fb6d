"""The first minutes: a trained model writes, a new one is trained and distilled.

    flm quickstart --workdir=runs/quickstart
    flm quickstart --notrain                     # only what is there already: seconds

First "stories", a model that comes with the package, writes in one evaluation and in several,
continues a prompt and fills a gap. Then a small denoiser is trained on 40,000 short stories that
come with it, too, and distilled into a flow map: some five minutes on two CPU cores, by the config
quickstart. Nothing is downloaded. Ctrl-C saves; the same command goes on.
"""

import dataclasses
import pathlib
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flm_jax.cli.command import Command
from flm_jax.host import folders, windows
from flm_jax.knobs import knob

if TYPE_CHECKING:
    from flm_jax.inference import FlowModel

STORIES = "stories"
_SEED = 0
_PROMPT = "Once upon a time, there was a little dog named"
_GAP = "Lily found a [MASK:2] in the garden. She was very [MASK] and went home."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    workdir: str = knob(
        "runs/quickstart", "of the training; the distillation has the same with _fmlm behind it"
    )
    train: bool = knob(True, "train a model of your own, too")


def run(options: Options) -> int | None:
    workdir = folders.expanded(options.workdir)
    if options.train:
        windows.refuse("training")
    show_model()
    code = None
    if options.train:
        code = train(workdir)
    if not code:
        show_next(workdir if options.train else None)
    return code


def show_model() -> None:
    """What the model in the package writes."""
    from flm_jax import inference

    print(f"1. {STORIES}, a model that comes with this package, writes\n", flush=True)
    model = inference.load(STORIES)
    default = model.config.sampler.steps[-1]
    for steps in (1, default, 2 * default):
        _show(model, f"{steps} network evaluation{'s' * (steps > 1)}", num_samples=3, steps=steps)
    _show(model, f"a prompt: {_PROMPT}", num_samples=2, prompt=_PROMPT, steps=2 * default)
    _show(model, f"a gap: {_GAP}", num_samples=2, infill=_GAP, steps=2 * default)


def _show(model: "FlowModel", title: str, **asked: Any) -> None:
    samples = model.generate(seed=_SEED, **asked)
    each = 1000 * samples.seconds / len(samples.texts)
    print(f"   {title} ({each:.0f} ms a text)")
    print("".join(f"     {text}\n" for text in samples.texts), flush=True)


def train(workdir: pathlib.Path, changes: Mapping[str, Any] = types.MappingProxyType({})) -> int:
    """Trains and distils by the config quickstart, with changes; the code of what went wrong."""
    from flm_jax import config as config_lib
    from flm_jax import experiment
    from flm_jax.training import loop

    teacher, mapped = {"teacher": str(workdir)}, workdir.with_name(f"{workdir.name}_fmlm")
    parts = (
        ("2. a small model is trained on this machine", "quickstart", {}, workdir),
        ("3. it is distilled into a flow map", "quickstart:distill", teacher, mapped),
    )
    for title, name, more, folder in parts:
        print(f"{title}: flm train --config={name} --workdir={folder}\n", flush=True)
        config = config_lib.load(name, {**changes, **more})
        config_lib.validate(config, experiment.tables())
        if code := loop.train(config, folder):
            return code
        print(flush=True)
    return 0


def show_next(workdir: pathlib.Path | None) -> None:
    model = STORIES if workdir is None else workdir
    print("Next")
    lines = {
        f"flm demo --checkpoint={model}": "watch it write, in the browser",
        f'flm generate --checkpoint={model} --prompt="Once upon a time"': "go on from your words",
        "flm train --config=text_files:small --config.data.options.path=YOURS.txt": (
            "train on your own text"
        ),
        "flm help": "everything else",
    }
    if workdir is not None:
        lines = {f"open {workdir / 'report.html'}": "the report of the training"} | lines
    for command, what in lines.items():
        print(f"   {what}:\n     {command}")


COMMAND = Command(__doc__, Options, run)
