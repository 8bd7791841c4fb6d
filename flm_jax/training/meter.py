"""How well the machine is used: numbers of a log line beside those of the loss.

mfu                      model FLOPs utilisation: model FLOPs of a step, by formula, over its
                         time and the peak of all devices; where the vendor's peak is known
tokens_per_second        of the batch, over all devices
data_wait_share          of the steps' time, what the next batch was waited for although the
                         device had nothing left to do
device_memory_gib        in use now, and at most so far: the fullest device of this process,
device_memory_peak_gib   where it keeps count
"""

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from flm_jax.host import numerics, runlog
from flm_jax.training import cost
from flm_jax.training import step as step_lib
from flm_jax.training.session import Session

GIB = 2.0**30


class Meter:
    """Reads the gauges of one session when a line is logged."""

    def __init__(self, session: Session):
        self._session = session
        self._step_at_peak: float | None = None  # seconds
        self.waited = 0.0  # seconds of the newest step; see `inputs`

    def prepare(self) -> None:
        """Counts network evaluations by tracing the gradient, where there is a peak to compare."""
        device, dtype = jax.devices()[0].device_kind, self._session.config.model.dtype
        peak = cost.known_peak(device, dtype)
        if peak is not None:
            self._step_at_peak = model_flops(self._session) / (peak * jax.device_count())

    def inputs(
        self, mask: jax.Array, before: Mapping[str, Any] | None
    ) -> tuple[jax.Array, jax.Array]:
        """`Session.inputs`, with the time that they took.

        Time counts only if the device was left without work meanwhile: the results of the step
        before are there, or None.
        """
        start = time.perf_counter()
        found = self._session.inputs(mask)
        idle = before is None or before["loss"].is_ready()
        self.waited = time.perf_counter() - start if idle else 0.0
        return found

    def read(self, window: runlog.Window) -> dict[str, float]:
        """The numbers that there are, by name."""
        found = {
            "tokens_per_second": window.tokens_per_second(),
            "data_wait_share": window.share_waited(),
        }
        if self._step_at_peak is not None and (seconds := window.seconds_per_step()):
            found["mfu"] = self._step_at_peak / seconds
        return {name: value for name, value in found.items() if value is not None} | _memory()


def _memory() -> dict[str, float]:
    """Of the fullest local device; {} where one keeps no count."""
    counts = [device.memory_stats() for device in jax.local_devices()]
    names = {"device_memory_gib": "bytes_in_use", "device_memory_peak_gib": "peak_bytes_in_use"}
    found = {}
    for name, key in names.items():
        values = [(count or {}).get(key) for count in counts]
        known = [value for value in values if value is not None]
        if known and len(known) == len(values):
            found[name] = max(known) / GIB
    return found


def model_flops(session: Session) -> float:
    """Of one training step, over all devices, by formula."""
    config, loss = session.config, session.experiment.loss
    shape = config.train.batch_size, config.data.length
    calls = cost.Calls()
    # Without micro-batches, which would be traced once for all.
    gradients = step_lib.make_gradients(
        {role: calls.counting(make) for role, make in session.make_nets.items()},
        loss,
        session.experiment.space,
        session.experiment.clock,
        prompts=session.prompts,
    )
    state = session.state_shape
    others = {**session.frozen, **state.loss} | ({"ema": state.ema} if loss.needs.ema else {})
    tokens, mask = (jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.int32, jnp.float32))
    key = jax.eval_shape(lambda: numerics.key(0))
    jax.eval_shape(gradients, state.params, others, tokens, mask, key)
    rows = shape[0] * shape[1]
    derivatives = loss.off_diagonal_share if loss.needs.forward_derivatives else 0.0
    vocab = session.experiment.model.vocab_size
    return cost.training_flops(
        config.model, vocab, rows, shape[1], calls.tokens / rows, derivatives
    )
