"""What a run leaves for machines: run.json (what ran, where, how it ended) and results.json.

Only process 0 writes; all processes sample together.
"""

import contextlib
import json
import os
import pathlib
import platform
import time
from importlib import metadata

import jax
import numpy as np

from flm_jax import config as config_lib
from flm_jax.checkpoint import Checkpoints, checkpoints_of
from flm_jax.errors import UserError
from flm_jax.evals import EVALS, comparison
from flm_jax.evals.comparison import Comparison, Written
from flm_jax.experiment import Experiment
from flm_jax.host import command, distributed, files
from flm_jax.inference import FlowModel, Samples
from flm_jax.inference.programs import counted
from flm_jax.inference.truths import known_truth
from flm_jax.models import dit
from flm_jax.training.session import Session
from flm_jax.training.step import TrainState

KEPT_SAMPLES = 12  # per number of steps, in results.json
STRIP_SEQUENCES = 3
STRIP_STEPS = 16  # at most this many frames in the denoising strip
LIBRARIES = ("flm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
SAMPLE_SEED = 0


@contextlib.contextmanager
def end_recorded(workdir: pathlib.Path):
    """run.json does not go on saying "running" when the body has ended with an exception.

    The caller holds the workdir.
    """
    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        with contextlib.suppress(Exception):  # the exception matters more
            newest = Checkpoints(checkpoints_of(workdir)).newest_known()
            record_end(workdir, "interrupted" if interrupted else "failed", newest or 0)
        raise


def record_end(workdir: pathlib.Path, stopped: str, step: int | None = None) -> None:
    """Corrects a run.json that says "running"; the caller holds the workdir."""
    if distributed.process_id() != 0 or not (workdir / "run.json").is_file():
        return
    facts = json.loads((workdir / "run.json").read_text())
    if facts["stopped"] == "running":
        facts |= {"stopped": stopped} | ({} if step is None else {"step": step})
        files.write_atomically(workdir / "run.json", json.dumps(facts, indent=2))


def write_run(session: Session, step: int, stopped: str) -> None:
    """run.json: what ran, where, with which versions, for how long."""
    if not distributed.is_main():
        return
    device = jax.devices()[0]
    rows = {f"{split}_rows": len(rows) for split, rows in session.data.rows.items()}
    facts = {
        "started": _started(session.workdir),
        "command": command.this(),
        "stopped": stopped,
        "step": step,
        "parameters": dit.count_parameters(session.state_shape.params),
        "versions": {"python": platform.python_version()} | _versions(),
        "hardware": {
            "platform": device.platform,
            "device": device.device_kind,
            "devices": jax.device_count(),
            "mesh": dict(session.mesh.shape),
            "cpu": platform.processor() or platform.machine(),
            "host_cores": os.cpu_count(),
        },
        "corpus": {
            **session.data.corpus.describe(),
            **rows,
            "train_tokens": len(session.data.rows["train"]) * session.config.data.length,
            "vocab_size": session.data.tokenizer.vocab_size,
            "space": type(session.experiment.space(_tables(session))).__name__,
        },
        "timings": {name: round(s, 2) for name, s in vars(session.clockwork).items()},
    }
    files.write_atomically(session.workdir / "run.json", json.dumps(facts, indent=2))


def write_results(session: Session, state: TrainState, step: int, why: str) -> tuple[dict, bool]:
    """Writes results.json, or finds it written for this step and these settings.

    All processes sample together. Returns the results and whether they were there already.
    """
    path = session.workdir / "results.json"
    found = _results_of(path, step, session.config)
    # The file is in process 0's folder, and perhaps in no other.
    if distributed.told("results", "there" if found is not None else "") == "there":
        return found or {}, True
    write_run(session, step, why)  # training is over, whatever becomes of the samples
    start = time.perf_counter()
    found = results(session, session.model(state, step), step)
    session.clockwork.sample_s += time.perf_counter() - start
    if distributed.is_main():
        write_run(session, step, why)
        files.write_atomically(path, json.dumps(found))
    return found, False


def results(session: Session, model: FlowModel, step: int) -> dict:
    """results.json: samples, the table of the evaluators with its verdict, the denoising strip."""
    knobs = session.config.sampler
    compared = _comparison(session)
    samples = [model.generate(knobs.num_samples, steps, SAMPLE_SEED) for steps in knobs.steps]
    table = {"columns": [], "rows": [], "verdict": []}
    if compared is not None:
        label = _label(session.experiment)
        table = compared.table([_written(label, one, knobs) for one in samples])
    return {
        "step": step,
        "settings": _settings(session.config),
        "samples": [
            {
                "steps": s.steps,
                "seconds": round(s.seconds, 3),
                "written": len(s.texts),  # in those seconds; the first ones are kept
                "texts": s.texts[:KEPT_SAMPLES],
            }
            for s in samples
        ],
        **table,
        "strip": _strip(session, model),
    }


def _comparison(session: Session) -> Comparison | None:
    """The pair of likelihood and diversity, and the evaluators of the config; None without any.

    The judge is what the rows were drawn from, if that can be loaded.
    """
    config, data = session.config, session.data
    if not config.evals:
        return None
    train_rows = comparison.training_rows(data)
    documents = data.corpus.source("train")
    others = [
        config_lib.build(
            EVALS,
            name,
            config.eval_options.get(name, {}),
            "evaluator",
            tokenizer=data.tokenizer,
            train_rows=train_rows,
            train_documents=documents,
        )
        for name in config.evals
    ]
    truth = known_truth(None, data)
    return Comparison(data.tokenizer, config.data.length, data, truth, others)


def _written(label: str, samples: Samples, knobs: config_lib.SamplerConfig) -> Written:
    evaluations = knobs.sampling(samples.steps).evaluations
    name = f"{label}, {counted(samples.steps, evaluations)}"
    return Written(name, evaluations, samples.tokens, samples.seconds)


def _label(experiment: Experiment) -> str:
    """What tables call a model: FLM, a flow map FMLM, or the name of its loss."""
    if experiment.has_denoiser:
        return "FMLM" if experiment.config.model.two_times else "FLM"
    return experiment.config.loss.name


def _strip(session: Session, model: FlowModel) -> dict:
    """A few sequences, evaluation by evaluation, every token with its probability."""
    steps = max([n for n in session.config.sampler.steps if n <= STRIP_STEPS], default=STRIP_STEPS)
    # Where no other number will do there may be many steps; not every one is shown.
    steps = session.experiment.sampler().steps_for(session.config.data.length) or steps
    path = model.generate(STRIP_SEQUENCES, steps, SAMPLE_SEED, trajectory=True).trajectory
    assert path is not None
    piece = session.data.tokenizer.piece
    frames = [
        {
            "tau": float(path.tau_S[i]),
            "t": float(path.t_S[i]),
            "sequences": [
                [[piece(int(token)), round(float(p), 4)] for token, p in zip(row, ps, strict=True)]
                for row, ps in zip(
                    path.tokens_SBL[i][:STRIP_SEQUENCES],
                    path.confidence_SBL[i][:STRIP_SEQUENCES],
                    strict=True,
                )
            ],
        }
        for i in sorted(set(np.linspace(0, steps - 1, min(steps, STRIP_STEPS), dtype=int).tolist()))
    ]
    return {"steps": steps, "frames": frames}


def _results_of(path: pathlib.Path, step: int, config: config_lib.Config) -> dict | None:
    """The stored results if they belong to this step, these samplers and evaluators."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    try:  # a knob that did not exist yet had what is now its default
        settings = _settings(config_lib.from_json(stored.get("settings", {})))
    except UserError:
        return None
    return stored if stored.get("step") == step and settings == _settings(config) else None


def _settings(config: config_lib.Config) -> dict:
    """What decides the results of a trained model, as JSON gives it back."""
    chosen = config_lib.to_dict(config)
    decisive = "sampler", "evals", "eval_options"
    return json.loads(json.dumps({name: chosen[name] for name in decisive}))


def _tables(session: Session) -> dict:
    tables = {role: params["embed"]["table"] for role, params in session.frozen.items()}
    return tables | {"student": session.state_shape.params["embed"]["table"]}


def _started(workdir: pathlib.Path) -> str:
    """When the first session began; kept over restarts."""
    try:
        return json.loads((workdir / "run.json").read_text())["started"]
    except (OSError, ValueError, KeyError):
        return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _versions() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
