"""The step of a training run whose loss or gradient was not finite, repeated and looked into."""

import dataclasses
import pathlib
import tempfile

import jax
import numpy as np

from flm_jax import config as config_lib
from flm_jax.checkpoint import Checkpoints, checkpoints_of
from flm_jax.errors import UserError
from flm_jax.host import numerics, progress, sharding
from flm_jax.training import step as step_lib
from flm_jax.training.session import Session

_SHOWN = 12


@numerics.pinned()
def reproduce(path: pathlib.Path, workdir: pathlib.Path) -> dict:
    """The step again: its loss and norm, the parameters and rows where numbers go wrong."""
    facts = _read(path)
    step = int(facts["step"])
    config = config_lib.from_json(str(facts["config"]))
    quiet = dataclasses.replace(config.train, spike_factor=0.0)
    config = dataclasses.replace(config, train=quiet)
    numerics.check_devices()
    with tempfile.TemporaryDirectory(prefix="flm_jax_reproduce_") as scratch:
        session = Session(config, pathlib.Path(scratch))
        session.checkpoints = Checkpoints(checkpoints_of(workdir))
        with session.log:
            start, state = _state_before(session, step)
            mask, key = session.mask(), session.train_key()
            for _ in progress.bar(range(start + 1, step), desc="repeating steps", delay=2):
                state, _ = session.train_step(state, session.frozen, *session.inputs(mask), key)
            result = {"step": step, "checkpoint": start, "steps_repeated": step - 1 - start}
            result |= _examine(session, state, facts, key)
            session.batches.close()
    return result


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            facts = dict(file)
        missing = {"step", "tokens", "mask", "config"} - facts.keys()
    except (OSError, ValueError, EOFError) as error:
        why = isinstance(error, OSError) and error.strerror or "it is damaged, or something else"
        raise UserError(f"{path} cannot be read ({why}); give a file of nonfinite/") from error
    if missing:
        raise UserError(f"{path} has no {min(missing)}; give a file of nonfinite/")
    return facts


def _state_before(session: Session, step: int) -> tuple[int, step_lib.TrainState]:
    older = [n for n in session.checkpoints.steps() if n < step]
    if older:
        return session.restore(older[-1])
    return 0, session.initial()


def _examine(session: Session, state: step_lib.TrainState, facts: dict, key: jax.Array) -> dict:
    """Gradients of the batch, and of each of its rows alone with the noise it has in the batch."""
    gradients = jax.jit(
        step_lib.make_gradients(
            session.make_nets,
            session.experiment.loss,
            session.experiment.space,
            session.experiment.clock,
            session.config.optim.accumulation_steps,
            session.prompts,
        )
    )
    key = jax.random.fold_in(key, int(facts["step"]) - 1)
    others = {
        **session.frozen,
        **state.loss,
        **({"ema": state.ema} if "ema" in session.make_nets else {}),
    }
    tokens = sharding.global_rows(facts["tokens"], session.mesh)

    def look(mask: np.ndarray):
        shared = sharding.global_rows(mask, session.mesh)
        grads, values = gradients(state.params, others, tokens, shared, key)
        return grads, {name: float(values[name]) for name in ("loss", "grad_norm")}

    grads, values = look(facts["mask"])
    leaves = jax.tree_util.tree_flatten_with_path(grads)[0]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, leaf in leaves
             if not np.isfinite(np.asarray(leaf)).all()]  # fmt: skip
    bad = {"loss": [], "grad_norm": []}
    for row in progress.bar(range(len(facts["tokens"])), desc="row by row", delay=2):
        alone = np.zeros_like(facts["mask"])
        alone[row] = facts["mask"][row]
        for name, value in look(alone)[1].items():
            if not np.isfinite(value):
                bad[name].append(row)
    return {
        "reproduced": not np.isfinite(list(values.values())).all(),
        **{name: str(value) for name, value in values.items()},
        "parameters": f"{len(names)} of {len(leaves)}: {', '.join(names[:_SHOWN])}",
        # A gradient that is not finite may reach all rows through what they share; a loss does not.
        "rows": bad["loss"] or bad["grad_norm"],
    }
