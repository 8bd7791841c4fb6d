"""How long a run would take on this CPU, said before its first step where that is long.

Products of the training step as it is traced, over the rate at which this machine multiplies
matrices of the model's shapes.
"""

import inspect

import jax
import jax.numpy as jnp

from flm_jax import target
from flm_jax.config import Config
from flm_jax.training import cost, products
from flm_jax.training.session import Session

HOUR = 3600.0
SLOWEST = 1e9  # FLOP/s: no core is slower, and
MOST = 50  # forward passes: no step takes more; so that short runs are neither traced nor timed
SHARE = 0.5  # of the matrix rate that a training step reaches (benchmarks/hot_path.md)
SMALL = {"width": 128, "depth": 4, "heads": 4}  # trains in half an hour on two cores


def warning(session: Session, step: int) -> str:
    """A sentence if the steps that are left take more than an hour on a CPU, else ""."""
    config = session.config
    limit = 60.0 * config.train.max_minutes
    if target.current().form != "cpu" or 0 < limit <= HOUR:
        return ""
    left, tokens = config.train.steps - step, config.train.batch_size * config.data.length
    forward = cost.evaluation_flops(config.model, session.experiment.vocab_size, config.data.length)
    if left * MOST * tokens * sum(forward.values()) < HOUR * SLOWEST:
        return ""
    seconds = left * step_flops(session) / (SHARE * matrix_rate(session))
    if limit:
        seconds = min(seconds, limit - session.clockwork.learning_s)
    return sentence(config, seconds) if seconds > HOUR else ""


def sentence(config: Config, seconds: float) -> str:
    """What to say of a run that takes so long, with the options that make it shorter."""
    hours, model = seconds / HOUR, config.model
    minutes = config.train.max_minutes
    limit = f" or train.max_minutes={minutes:g}" if minutes else ""
    took = f"about {hours:.0f} hours" if hours >= 1.5 else f"about {seconds / 60:.0f} minutes"
    took = f"about {hours / 24:.0f} days" if hours > 72 else took
    text = (
        f"training to train.steps={config.train.steps}{limit} will take {took} on this CPU; "
        "--config.train.max_minutes=60 ends it after an hour"
    )
    if model.width > SMALL["width"]:
        smaller = " ".join(f"--config.model.{name}={value}" for name, value in SMALL.items())
        text += (
            f", and a smaller model learns more in it: the stage small where a config has one "
            f"(--config=configs/text_files.py:small), or {smaller} in a new workdir"
        )
    return text


def step_flops(session: Session) -> float:
    """FLOPs of the matrix products of one training step."""
    shape = session.config.train.batch_size, session.config.data.length
    tokens, mask = (jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.int32, jnp.float32))
    key = jax.eval_shape(lambda: jax.random.key(0))
    return products.products(
        inspect.unwrap(session.train_step), (session.state_shape, session.frozen, tokens, mask, key)
    )


def matrix_rate(session: Session) -> float:
    """FLOP/s of this machine at the model's products."""
    model, tokens = (
        session.config.model,
        session.config.train.batch_size * session.config.data.length,
    )
    rate = cost.MatrixRate(
        min(tokens, 2048), model.width, model.mlp_ratio * model.width,
        session.experiment.vocab_size, model.dtype, 512, 0.2,
    )  # fmt: skip
    rate.sample()
    return rate.median
