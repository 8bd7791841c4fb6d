"""The folder that a jump is exported to: the graph, and what its caller needs besides.

jump.onnx | jump.stablehlo, weights.npz   the graph
model.json    what the model is, inputs and outputs, special tokens, sampling defaults
arrays.npz    table (V, D); noise (D, D) in projected space; clock_t, clock_tau
tokens.json   a readable form of every token; tokenizer/ is ours
sample.py     draws texts, without this library
README.md     all of this in words
"""

import importlib.resources
import importlib.util
import json
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from flm_jax import __version__
from flm_jax.errors import UserError
from flm_jax.export import onnx_model, stablehlo
from flm_jax.export.jump import Jump, of_model
from flm_jax.flow import clock as clock_lib
from flm_jax.host import files, numerics
from flm_jax.inference import TOKENIZER_FOLDER, FlowModel

ONNX, STABLEHLO = "onnx", "stablehlo"
FORMATS = ONNX, STABLEHLO
_NEEDED = {ONNX: "onnx", STABLEHLO: "flatbuffers"}  # the second one by jax.export
_ABOUT = "One jump of a flow language model; README.md beside it says how it is used."


def check(form: str) -> None:
    """UserError unless what writes that format is installed."""
    needed = _NEEDED.get(form)
    if needed and importlib.util.find_spec(needed) is None:
        raise UserError(
            f"--format={form} needs the package {needed}, which is not installed; run pip install "
            "'flm_jax[export]'"
        )


@numerics.pinned()
def write(
    model: FlowModel,
    form: str,
    destination: pathlib.Path,
    batch: int | None = None,
    length: int | None = None,
    weights: str = "ema",
) -> Jump:
    """Writes the folder, whole or not at all; returns the jump in it.

    ``batch`` and ``length`` fix the sizes of the graph; None leaves them open. ``weights`` is told
    in model.json.

    Raises UserError for a model without a jump, what is not installed, a destination that is
    taken.
    """
    check(form)
    files.check_new(destination)
    jump = of_model(model, batch, length)
    about = {"format": form, "weights": weights, **described(jump)}
    with files.appearing(destination) as folder:
        if form == ONNX:
            onnx_model.write(jump, folder, _ABOUT, {"model": json.dumps(about)})
        else:
            stablehlo.write(jump, folder)
        np.savez(folder / "arrays.npz", allow_pickle=False, **arrays(jump))
        tokens = [model.tokenizer.piece(token) for token in range(jump.vocab_size)]
        for name, value in (("model", about), ("tokens", tokens)):
            text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
            (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        model.tokenizer.save(folder / TOKENIZER_FOLDER)
        (folder / "sample.py").write_text(example(form), encoding="utf-8")
        names = {path.name for path in folder.iterdir()}
        (folder / "README.md").write_text(readme(about, names), encoding="utf-8")
    return jump


def example(form: str) -> str:
    """The program that draws texts from such a folder."""
    files_of_ours = importlib.resources.files("flm_jax.export")
    return (files_of_ours / f"sample_{form}.py").read_text(encoding="utf-8")


def described(jump: Jump) -> dict[str, Any]:
    """What model.json tells."""
    model, sampler = jump.model, jump.model.config.sampler
    tokenizer = model.tokenizer
    sizes = {"batch": jump.batch, "length": jump.length or model.config.data.length}
    return {
        "flm_jax": __version__,
        "kind": model.kind,
        "training_step": model.step,
        "step": "jump" if jump.needs.two_times else "euler",
        "space": "onehot" if jump.is_onehot else "projected",
        "vocab_size": jump.vocab_size,
        "state_width": jump.space.noise_width,
        **sizes,
        "any_length": jump.length is None,
        "longest": jump.longest or None,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
        "clock": model.config.clock.name,
        "steps": list(sampler.steps),
        "prior_scale": sampler.prior_scale,
        "denoiser_temperature": jump.temperature,
        "inputs": [_told(*item) for item in jump.inputs.items()],
        "outputs": [_told(*item) for item in jump.outputs.items()],
    }


def _told(name: str, found: tuple[Any, tuple[Any, ...]]) -> dict[str, Any]:
    dtype, shape = found
    return {"name": name, "dtype": np.dtype(dtype).name, "shape": list(shape)}


def arrays(jump: Jump) -> dict[str, np.ndarray]:
    """What arrays.npz holds: noise is z @ noise' of z ~ N(0, 1); all but the clock float32."""
    config, table = jump.model.config, jump.model.params["embed"]["table"]
    found = {"table": np.asarray(table, np.float32)}
    constant = jump.space.constant()
    if constant is not None:
        found["noise"] = np.asarray(jax.device_get(constant), np.float32)
    t = tau = np.array([0.0, 1.0])
    if config.clock.name != "identity":
        t, tau = clock_lib.knots(jump.model.experiment.vocab_size, config.clock.quadrature)
    return found | {"clock_t": t, "clock_tau": tau}


def readme(about: dict[str, Any], names: set[str]) -> str:
    """What README.md says; ``names`` are those of the files beside it."""
    files_of = {
        "jump.onnx": "one jump of the model",
        "jump.onnx.data": "its weights",
        "jump.stablehlo": "one jump of the model, a function of (weights, inputs)",
        "weights.npz": "its weights by name, float32",
        "model.json": "what the model is, inputs and outputs, special tokens, defaults",
        "arrays.npz": _ARRAYS[about["space"]],
        "tokens.json": "a readable form of every token",
        "tokenizer": "the tokenizer as flm_jax saves it (`flm_jax.tokenizers.load`)",
        "sample.py": "draws texts: `python sample.py 8 0` (8 steps, seed 0)",
    }
    length = f"any number of (trained with {about['length']})"
    if about["longest"]:
        length = f"up to {about['longest']} (trained with {about['length']})"
    length = length if about["any_length"] else about["length"]
    sizes = f"B is {about['batch'] or 'any number of'} texts, L {length} tokens"
    parts = [
        f"# A {about['kind']}, exported by flm_jax {about['flm_jax']}",
        _table(["file", ""], ([f"`{n}`", what] for n, what in files_of.items() if n in names)),
        "## Inputs and outputs",
        f"{sizes}; the state is {about['state_width']} wide (space {about['space']}).",
        _table(["name", "type", "shape", ""], map(_cells, about["inputs"] + about["outputs"])),
        f"All logits of a call exist at one time: B * L * {about['vocab_size']} floats.",
        "## How texts are drawn",
        _NOISE[about["space"]],
        _LOOP,
        *([_GIVEN] if _has(about, "given_mask") else []),
        *([_ESTIMATE] if _has(about, "estimate") else []),
        _JUMP if about["step"] == "jump" else _EULER,
        _CLOCK,
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _has(about: dict[str, Any], name: str) -> bool:
    return any(one["name"] == name for one in about["inputs"])


def _cells(one: dict[str, Any]) -> list[str]:
    shape = ", ".join(map(str, one["shape"]))
    return [f"`{one['name']}`", one["dtype"], f"({shape})", _MEANINGS[one["name"]]]


_ARRAYS = {
    "projected": "`table` E (V, D), `noise` R (D, D), `clock_t` and `clock_tau`",
    "onehot": "`table` E (V, D), `clock_t` and `clock_tau`",
}
_MEANINGS = {
    "state": "where the text is now; noise at the start",
    "tau_s": "the time now: 0 is noise, 1 is text",
    "tau_t": "the time after the jump",
    "estimate": "`mean` of the jump before; zeros at first",
    "given_tokens": "tokens that are given",
    "given_mask": "where they are",
    "next_state": "the next state",
    "tokens": "the most probable token of each position",
    "confidence": "its probability; 1 where it is given",
    "mean": "what is expected of the text, as a state",
}
_NOISE = {
    "projected": """\
Start with noise as the network sees it, `state = z @ noise.T` with z standard normal and `noise` of
`arrays.npz`.""",
    "onehot": "Start with a standard normal `state`.",
}
_LOOP = """\
Go through times from 0 to 1, even steps or others: jump from `tau_s` to `tau_t`, and take
`next_state` as the next `state`. `tokens` of the last jump are the texts. One step is one jump from
0 to 1."""
_GIVEN = """\
Set `given_mask` where tokens are given: a prompt, or the frame of a gap. Texts begin with `bos_id`
of `model.json`, if there is one. The graph puts given tokens into the state, and keeps them."""
_ESTIMATE = """\
The network sees its own estimate: give `mean` of the jump before as `estimate`, and zeros to the
first one."""
_JUMP = """\
`next_state` is that of a jump without fresh noise (gamma = 0). With gamma above 0, and t of `tau_t`
by the clock: aim at t' = 1 - (1 - t) * sqrt(1 - gamma^2), jump to its tau, and go on from
`next_state + (t - t') * mean + gamma * (1 - t) * noise`."""
_EULER = """\
`next_state` is that of an Euler step of the probability flow, `x + (t' - t) / (1 - t) * (mean - x)`
with t and t' of the two times by the clock: it takes many of them."""
_CLOCK = """\
The clock between the network's time tau and the time t of `x = (1 - t) * noise + t * text`:
`np.interp(tau, clock_tau, clock_t)` and back, to 2e-5. The graph has it inside, exactly."""
