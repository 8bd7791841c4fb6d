"""The kinds dit (forward pass of a network) and ckpt (checkpoint files, read and evaluated)."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.flow.posterior import Posterior
from flm_jax.flow.space import OneHot, Projected
from flm_jax.flow.trees import Params
from flm_jax.interop import hub_layout
from flm_jax.interop import official as official_lib
from flm_jax.lab.parity import networks
from flm_jax.lab.parity.checks import Checks
from flm_jax.lab.parity.goldens import Case, GoldenError
from flm_jax.models import dit as dit_lib
from flm_jax.models import layers
from flm_jax.models.attention import rotary_tables

LOGITS32 = 2e-5  # no record for checkpoints: a few times what is recorded for the dit cases


@functools.partial(jax.jit, static_argnums=0)
def forward(
    model: dit_lib.Model,
    params: Params,
    x: jax.Array,
    tokens: jax.Array,
    tau: jax.Array,
    tau_t: jax.Array | None,
) -> dict[str, jax.Array]:
    """Everything recorded about one network, under the recorded names; ``tau_t`` may be None."""
    net = model.net(params)
    tables = {"student": net.table}
    h = OneHot(tables).view(x, "student")
    # Tokens enter as a clean state, where the projected space looks rows of the table up.
    clean = Projected(tables).corrupt(jnp.zeros_like(h), tokens, jnp.ones_like(tau))
    found = {"mid/embed": h}
    both, batch = jnp.concatenate([h, clean]), len(tau)
    first = jnp.tile(tau, 2)
    two = () if tau_t is None else (("_two_times", jnp.tile(tau_t, 2)),)
    for suffix, second in (("", None), *two):
        output = net(both, first, second)
        logits = output.posterior.logits().dense()
        found[f"out/logits{suffix}"] = logits[:batch]
        found[f"out/logits_tokens{suffix}"] = logits[batch:]
        if output.log_weight is not None:
            found[f"out/loss_weight{suffix}"] = output.log_weight[:batch]
        if second is None:
            head = output.posterior.head
            for name, cap in (("capped", head.cap), ("plain", 0.0)):
                p = Posterior(
                    output.posterior.features_BLD[:batch], dataclasses.replace(head, cap=cap)
                )
                found[f"out/log_probs_{name}"] = log_probs(p)
    return found


@jax.jit
def log_probs(posterior: Posterior) -> jax.Array:
    """log p of every token at every position, (B, L, V), by the method that losses use."""
    shape = posterior.features_BLD.shape[:2]

    def one(token):
        return posterior.log_prob(jnp.full(shape, token, jnp.int32))

    every = jax.lax.map(one, jnp.arange(posterior.head.vocab_size, dtype=jnp.int32))
    return jnp.moveaxis(every, 0, -1)


def network(case: Case, checks: Checks) -> None:
    """Logits of dense states and of tokens, one time and two, log-probabilities, loss weight."""
    family = networks.Family.read(case)
    ((_, model),) = family.models
    for bits in (64, 32):
        with checks.precision(bits):
            params = family.params()["student"]
            x, tokens, tau, tau_t = (
                networks.wide(case[f"in/{name}"]) for name in ("x", "x0", "tau", "tau_prime")
            )
            ours = forward(model, params, x, tokens, tau, tau_t)
            embedder = layers.TimeEmbedding(family.sizes.cond_dim)
            ours["mid/sigma_map"] = embedder.apply({"params": params["time_embed"]}, tau)
            length, head_width = tokens.shape[1], model.width // model.module.heads
            cos, sin = rotary_tables(length, head_width, x.dtype)
            ours["mid/rotary_cos"] = jnp.concatenate([cos, cos], axis=-1)
            ours["mid/rotary_sin"] = jnp.concatenate([sin, sin], axis=-1)
            for name, array in ours.items():
                checks.recorded(name, array)
            for name in case.arrays:
                if name.startswith("out/") and name not in ours:
                    checks.fail(name, "our network has no such output")


def checkpoint(case: Case, checks: Checks) -> None:
    """A checkpoint file, with every set of weights in it, against the recorded logits."""
    with checks.precision(32):
        if case.path.suffix == ".npz":
            _expected(case, checks)
        elif case.path.is_dir():
            _compare(case, checks, _record_of(case), None, case.stem.rsplit("_", 1)[-1])
        else:
            expected = _record_of(case)
            weights = ["raw"] if "no_ema" in case.stem else _weights(expected)
            for kind in weights:
                _compare(case, checks, expected, kind.replace("_", ":"), kind)
            emas = [kind for kind in weights if kind != "raw"] or ["raw"]
            preferred = official_lib.read(case.path).weights.split(":")[0]
            checks.exact("default weights", preferred, emas[0].split("_")[0])


def _expected(case: Case, checks: Checks) -> None:
    """The record itself: all of its arrays are reached from the file that it belongs to."""
    source = case.other(case.name.removesuffix("_expected"))
    for kind in _weights(case):
        _compare(source, checks, case, kind.replace("_", ":"), kind)
    name = "out/teacher_log_probs"
    if name in case:
        teacher = re.search(r"([\w-]+)\.ckpt", case.entry.get("notes", ""))
        if teacher is None:
            raise GoldenError(f"the notes do not say which file {name} was loaded from")
        tensors, model = _read(case.other(f"ckpt/{teacher[1]}"), "ema", networks.logit_cap(case))
        x, tokens, tau = (networks.wide(case[f"in/{key}"]) for key in ("x", "x0", "tau"))
        ours = forward(model, networks.params(tensors), x, tokens, tau, None)
        checks.recorded(name, ours["out/log_probs_capped"], floor=LOGITS32)


def _record_of(case: Case) -> Case:
    """The expected logits of a file: its own, or those of the file that it was made from."""
    words = case.stem.removeprefix("hub_").split("_")
    for count in range(len(words), 0, -1):
        name = f"ckpt/{'_'.join(words[:count])}_expected"
        if name in case.index:
            return case.other(name)
    raise GoldenError("the set has no expected logits for this file")


def _weights(expected: Case) -> list[str]:
    """The sets of weights that a record has logits of: raw, ema or ema_DECAY."""
    prefix = "out/logits_"
    kinds = [name.removeprefix(prefix) for name in expected.arrays if name.startswith(prefix)]
    kinds = [kind for kind in kinds if re.fullmatch(r"raw|ema(_[\d.]+)?", kind)]
    if not kinds:
        raise GoldenError(f"{expected.name} has no logits")
    return kinds


def _read(
    case: Case, weights: str | None, cap: float
) -> tuple[dict[str, np.ndarray], dit_lib.Model]:
    found = official_lib.read(case.path, weights)
    return found.state, networks.model(case, found.sizes, cap, found.heads)


def _compare(case: Case, checks: Checks, expected: Case, weights: str | None, suffix: str) -> None:
    """Logits of one set of weights; the parameters also survive the way out and back in."""
    tensors, model = _read(case, weights, 0.0)
    inputs = [networks.wide(expected[f"in/{name}"]) for name in ("x", "x0", "tau", "tau_prime")]
    ours = forward(model, networks.params(tensors), *inputs)
    for name in ("logits", "logits_tokens", "logits_two_times"):
        recorded = f"out/{name}_{suffix}"
        if recorded in expected or name != "logits_two_times":
            relative = LOGITS32 * np.max(np.abs(expected[recorded]))
            checks.close(recorded, ours[f"out/{name}"], expected[recorded], relative)
    back = hub_layout.from_params(hub_layout.to_params(tensors))
    same = list(back) == list(tensors) and all(
        np.array_equal(back[name].view(np.int32), tensors[name].view(np.int32)) for name in tensors
    )
    checks.exact(f"export and import of {suffix}, bit for bit", same, True)
