"""The folder of the page: files for any static host, and what the page needs of each model.

index.html, *.js, *.css, product.wasm    the page
models.json        the folders of the models, in order
MODEL/model.json   settings of the network, sampling defaults, pieces, the tokenizer
MODEL/model.safetensors   parameters by our names, the factor of the noise, the clock; float32
"""

import importlib.resources
import json
import pathlib
from collections.abc import Iterator, Sequence
from importlib.resources.abc import Traversable
from typing import Any

import jax
import numpy as np

from flm_jax.demo import tokenizer
from flm_jax.errors import UserError
from flm_jax.export import jump as jump_lib
from flm_jax.flow import maps
from flm_jax.host import files, numerics
from flm_jax.inference import FlowModel
from flm_jax.interop import flat
from flm_jax.models.dit import count_parameters
from flm_jax.report.strip import shown

MOST = 3  # models side by side
LARGEST = 200  # million parameters: a browser has 4 GB for one model
STEPS = 32  # the end of the page's slider
_SHARED = "colours.css", "strip.css", "player.js"  # with the report
_SETTINGS = (
    "width",
    "depth",
    "heads",
    "cond_dim",
    "attention_cap",
    "logit_cap",
    "causal",
    "two_times",
    "self_conditioning",
    "input_scale",
    "norm",
    "mlp",
    "qk_norm",
    "tied_head",
)


def check_count(checkpoints: Sequence[str]) -> None:
    """UserError for more models than the page has columns."""
    if len(checkpoints) > MOST:
        raise UserError(
            f"--checkpoint names {len(checkpoints)} models, but the page shows at most {MOST} side "
            "by side; leave some out"
        )


@numerics.pinned()
def write(models: Sequence[tuple[str, FlowModel]], destination: pathlib.Path) -> None:
    """Writes the folder, whole or not at all, of models with what the page calls them.

    Raises UserError for a model that the page cannot run, and a destination that is taken.
    """
    files.check_new(destination)
    for _, model in models:
        check(model)
    with files.appearing(destination) as folder:
        for file in page():
            (folder / file.name).write_bytes(file.read_bytes())
        folders = [f"model{i}" for i in range(1, len(models) + 1)]
        _write_json(folder / "models.json", folders)
        for place, (name, model) in zip(folders, models, strict=True):
            write_model(model, folder / place, name)


def page() -> Iterator[Traversable]:
    """The files of the page itself."""
    ours, report = (importlib.resources.files(f"flm_jax.{room}") for room in ("demo", "report"))
    for part in ("web", "vendor"):
        yield from ours.joinpath(part).iterdir()
    yield from (report.joinpath(name) for name in _SHARED)


def check(model: FlowModel) -> None:
    """UserError for a model that the page cannot run."""
    if model.config.model.causal:
        if _bos_id(model) is None:
            raise UserError(
                "an autoregressive model begins with BOS, but this tokenizer has none, so the page "
                "cannot run it; give a denoiser or a flow map"
            )
    else:
        jump_lib.of_model(model)
    parameters = count_parameters(model.params)
    if parameters > LARGEST * 1_000_000:
        raise UserError(
            f"the model has {parameters:,} parameters, and a page in the browser runs at most "
            f"{LARGEST} million; flm export --format=onnx writes it for other programs"
        )


def write_model(model: FlowModel, folder: pathlib.Path, name: str = "") -> None:
    """Makes the folder of a model, of that name on the page; `check` comes first."""
    from safetensors.numpy import save

    folder.mkdir()
    (folder / "model.safetensors").write_bytes(save(arrays(model)))
    _write_json(folder / "model.json", {"name": name, **described(model)})


def arrays(model: FlowModel) -> dict[str, np.ndarray]:
    """The parameters by name, ``noise`` (a state is z @ noise) and ``clock/...``, float32."""
    found = {n: a for n, a in flat.flat(model.params).items() if not n.startswith("loss_weight")}
    if model.config.model.causal:
        return found
    constant = model.space().constant()
    if constant is not None:
        found["noise"] = np.asarray(jax.device_get(constant), np.float32).T
    spline = model.experiment.clock.inverse
    if spline is not None:
        found |= {f"clock/{name}": np.asarray(a) for name, a in spline._asdict().items()}
    return {name: np.ascontiguousarray(a, np.float32) for name, a in found.items()}


def described(model: FlowModel) -> dict[str, Any]:
    """What model.json tells."""
    config, experiment = model.config, model.experiment
    sampler, section = config.sampler, config.model
    settings = {name: vars(section)[name] for name in _SETTINGS}
    if section.causal:
        settings["attention_cap"] = 0.0
    else:
        settings["onehot"] = jump_lib.of_model(model).is_onehot
    vocab_size = experiment.model.vocab_size
    has_fresh_noise = sampler.name == "churn" or sampler.gamma > 0.5
    way = "rounds" if experiment.loss.needs.given else "fresh" if has_fresh_noise else "flow"
    return {
        "kind": model.kind,
        "training_step": model.step,
        "parameters": count_parameters(model.params),
        "settings": settings,
        "length": config.data.length,
        "vocab_size": vocab_size,
        "given": experiment.loss.needs.given,
        "bos_id": _bos_id(model),
        "way": "causal" if section.causal else way,
        "steps": min(STEPS, sampler.steps[-1]),
        "rounds": sampler.rounds if sampler.name == "refinement" else STEPS // 2,
        "eps": sampler.options.get("eps", maps.EPS) if sampler.name == "euler" else maps.EPS,
        "grid_power": sampler.grid_power,
        "prior_scale": sampler.prior_scale,
        "denoiser_temperature": sampler.denoiser_temperature,
        "threshold": sampler.threshold,
        "top_p": sampler.options.get("top_p", 1.0) if section.causal else 1.0,
        "never": list(sampler.options.get("never", ())) if section.causal else [],
        "pieces": [shown(model.tokenizer.piece(i)) for i in range(model.tokenizer.vocab_size)],
        "tokenizer": tokenizer.described(model.tokenizer),
    }


def _bos_id(model: FlowModel) -> int | None:
    options = model.config.sampler.options
    chosen = options.get("bos_id", -1) if model.config.model.causal else -1
    return model.tokenizer.bos_id if chosen == -1 else chosen


def _write_json(path: pathlib.Path, value: Any) -> None:
    path.write_text(json.dumps(value, allow_nan=False, separators=(",", ":")), encoding="ascii")
