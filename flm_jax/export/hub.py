"""A run as a folder for a model hub, with its model card; `interop/release.py` has the layout."""

import json
import pathlib
from typing import Any

from flm_jax import __version__
from flm_jax import config as config_lib
from flm_jax.errors import UserError
from flm_jax.evals import base
from flm_jax.host import files
from flm_jax.inference import FlowModel
from flm_jax.interop import flat, release
from flm_jax.models.dit import count_parameters

HUB = "hub"
LICENCE = "FILL_IN"  # no licence of a hub: it asks for one before it takes the folder
_METHODS = {
    "denoiser": "A denoiser (FLM): it writes a text in many small steps from noise.",
    "flow map": "A flow map (FMLM): it jumps from noise to text in a few steps, or in one.",
}
_PAPER = "https://arxiv.org/abs/2602.16813"


def write(
    model: FlowModel,
    destination: pathlib.Path,
    weights: str = "ema",
    workdir: pathlib.Path | None = None,
    dtype: str = "float32",
) -> None:
    """Writes the folder, whole or not at all.

    ``workdir``: of its run, where run.json and results.json tell what the card says of it;
    ``dtype``: of the file, see `release.write`.

    Raises UserError for a correction, which needs its teacher, for a config that names somebody's
    own classes, and a destination that is taken.
    """
    files.check_new(destination)
    if model.experiment.loss.is_correction:
        raise UserError(
            "the correction of a denoiser writes with its teacher, so it is not one model; release "
            "the denoiser, or the second stage (loss second_stage)"
        )
    arrays = flat.flat(model.params)
    made = release.Release(model.config, model.tokenizer, arrays, model.step, weights)
    run, results = (_json(workdir, name) for name in ("run.json", "results.json"))
    if results.get("step") != model.step or weights != "ema":
        results = {}  # of other weights than these
    with files.appearing(destination) as folder:
        release.write(folder, made, __version__, dtype)
        text = card(model, weights, run, results)
        (folder / "README.md").write_text(text, encoding="utf-8")


def card(model: FlowModel, weights: str, run: dict[str, Any], results: dict[str, Any]) -> str:
    """The model card: what it is, how it is used, its data, its training, its evaluation."""
    config = release.without_places(model.config)
    kind = _METHODS.get(model.kind, f"A baseline, trained by {model.kind}.")
    parts = [
        f"---\nlicense: {LICENCE}\nlibrary_name: flm_jax\npipeline_tag: text-generation\n"
        "tags:\n- flow-language-model\n- jax\n---",
        f"# {model.experiment.config.data.name or 'A'} {model.kind}",
        f"{kind} {count_parameters(model.params):,} parameters ({weights}, training step "
        f"{model.step}), texts of {config.data.length} tokens, vocabulary "
        f"{model.experiment.vocab_size:,} ({model.tokenizer.name}). Trained and read by flm_jax "
        f"{__version__}, after [Flow Map Language Models]({_PAPER}).",
        f"**Licence:** {LICENCE}. Replace both words, here and in the first lines, before you "
        "share the model; the licence of the training data may limit what you can choose.",
        "## Use",
        "```python\nimport flm_jax\n\n"
        'model = flm_jax.load("hf://USER/REPO")\n'
        f"print(model.generate(num_samples=4, steps={config.sampler.steps[-1]}).texts)\n```",
        "## Data",
        _data(config, run),
        "## Training",
        _training(config, run),
        *(["## Evaluation", _evaluation(results)] if results.get("rows") else []),
        "## Limits",
        "It writes what its training text makes likely, true or not. Nobody has tested it for any "
        "use; say here what you know of it.",
    ]
    return "\n\n".join(parts) + "\n"


def _data(config: config_lib.Config, run: dict[str, Any]) -> str:
    name = config.data.name or "not known (an official checkpoint)"
    facts = [f"* data set: {name}"]
    facts += [f"* options.{key}: {value}" for key, value in config.data.options.items()]
    corpus = run.get("corpus", {})
    for key in ("train_rows", "train_tokens"):
        if isinstance(corpus.get(key), int):
            facts.append(f"* {key.replace('_', ' ')}: {corpus[key]:,}")
    return "\n".join(facts)


def _training(config: config_lib.Config, run: dict[str, Any]) -> str:
    facts = [f"Loss `{config.loss.name}`; all settings are in config.json."]
    if isinstance(command := run.get("command"), str):
        words = " ".join(release.cut(word) for word in command.split())
        facts.append(f"```\n{words}\n```")
    hardware = run.get("hardware", {})
    if "device" in hardware:
        facts.append(f"{hardware.get('devices', 1)} x {hardware['device']}.")
    return "\n\n".join(facts)


def _evaluation(results: dict[str, Any]) -> str:
    sentences = [str(sentence) for sentence in results.get("verdict") or []]
    table = base.format_table({key: results[key] for key in ("columns", "rows")}, width=10**6)
    return "\n\n".join([f"```\n{table}\n```", *sentences])


def _json(workdir: pathlib.Path | None, name: str) -> dict[str, Any]:
    """What a file of a run says; nothing if it is not there or damaged."""
    try:
        found = json.loads((workdir / name).read_text(encoding="utf-8")) if workdir else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
