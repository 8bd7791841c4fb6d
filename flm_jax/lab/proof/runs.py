"""The training runs of the proof, from configs/proof.py."""

import json
import pathlib

from flm_jax import config as config_lib


def make_config(
    folder: pathlib.Path,
    language: str,
    method: str,
    earlier: str,
    seed: int,
    scale: float = 1.0,
    size: str = "default",
) -> config_lib.Config:
    """The config of one run, with ``scale`` times its training steps.

    It starts from the run of the method ``earlier``, if there is one. At the end of the training a
    single text is written; what is in the tables is written afterwards, by `measuring.py`.
    """
    from flm_jax.configs import proof  # pyright: ignore[reportAttributeAccessIssue]

    tree = proof.get_config(f"{language},{method},{size}").to_dict()
    train, optim, model, sampler = (tree[x] for x in ("train", "optim", "model", "sampler"))
    tree["seed"], tree["evals"] = seed, ()
    sampler["num_samples"], sampler["steps"] = 1, sampler["steps"][:1]
    train["steps"] = max(2, round(scale * train["steps"]))
    optim["warmup_steps"] = min(optim["warmup_steps"], train["steps"] // 2)
    if earlier:
        source = str(folder / f"{language}_{earlier}_{seed}")
        # What a residual learns is not a denoiser: the network made of both starts as the denoiser.
        first = source if earlier != "residual" else str(folder / f"{language}_flm_{seed}")
        tree["init_from"] = first
        on_data = tree["loss"]["options"].get("on_diagonal") == "data"
        tree["teacher"] = source if model["two_times"] and not on_data else ""
    return config_lib.resolve(tree)


def train(config: config_lib.Config, workdir: pathlib.Path) -> None:
    """Trains one model, unless it is there."""
    from flm_jax import experiment
    from flm_jax.training import loop

    config_lib.validate(config, experiment.tables())
    code = loop.train(config, workdir)
    if code:
        raise SystemExit(code)


def minutes(workdir: pathlib.Path) -> float:
    """How long a run has trained, without compiling."""
    timings = json.loads((workdir / "run.json").read_text(encoding="utf-8"))["timings"]
    return (timings["train_s"] - timings["compile_s"]) / 60
