"""The kinds dit and plus_dit (forward pass of a network), ckpt and plus_ckpt (checkpoint files)."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.flow import discrete
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.space import OneHot, Projected
from flm_jax.flow.trees import Params
from flm_jax.interop import hub_layout, settings
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
    first = jnp.concatenate([tau, tau])
    two = () if tau_t is None else (("_two_times", jnp.concatenate([tau_t, tau_t])),)
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


def per_token(case: Case, checks: Checks) -> None:
    """Logits with times per position, one and two, and with times per sequence."""
    family = networks.Family.read(case)
    ((_, model),) = family.models
    embedders = {
        "sigma_map": ("time_embed", "tau"),
        "sigma_map_prime": ("time_embed_to", "tau_prime"),
    }
    for bits in (64, 32):
        with checks.precision(bits):
            params = family.params()["student"]
            arrays = {name: networks.wide(a) for name, a in case.under("in/").items()}
            x, tokens = arrays["x"], arrays["x0"]
            found = forward(model, params, x, tokens, arrays["tau"], arrays["tau_prime"])
            rows = forward(model, params, x, tokens, arrays["tau_row"], arrays["tau_prime_row"])
            found |= {
                f"out/logits_row{end}": rows[f"out/logits{end}"] for end in ("", "_two_times")
            }
            logits = model.logit_cap * jnp.tanh(found["out/logits_two_times"] / model.logit_cap)
            found["out/log_probs_capped_two_times"] = jax.nn.log_softmax(logits)
            embedder = layers.TimeEmbedding(family.sizes.cond_dim)
            for name, (part, tau) in embedders.items():
                found[f"mid/{name}"] = embedder.apply({"params": params[part]}, arrays[tau])
            for name in case.arrays:
                if name.startswith("out/"):
                    checks.recorded(name, found[name])
            for name in ("mid/embed", "mid/sigma_map", "mid/sigma_map_prime"):
                checks.recorded(name, found[name])


def any_order_checkpoint(case: Case, checks: Checks) -> None:
    """The file that recorded training has written, or logits of its two sets of weights."""
    if case.path.suffix == ".ckpt":
        trained = case.other("plus_train/fmlm_plus_4steps")
        for weights, name in (("raw", "out/final_param/"), ("ema", "out/final_ema/")):
            found = official_lib.read(case.path, weights)
            for parameter, array in found.state.items():
                checks.exact(f"{weights}: {parameter}", array, trained[f"{name}{parameter}"])
        ours = settings.config_of(found, {"name": ""}, trained.option("length"))
        known = ours.clock.name, ours.loss.name, ours.model.attention_cap, ours.model.logit_cap
        checks.exact("clock, loss, caps", known, ("identity", "any_order", 50.0, 30.0))
        return
    source = case.other(case.name.removesuffix("_expected"))
    with checks.precision(32):
        for weights in _weights(case):
            found = official_lib.read(source.path, weights)
            model = networks.model(case, found.sizes, case.option("logit_cap"), found.heads)
            inputs = [networks.wide(case[f"in/{n}"]) for n in ("x", "x0", "tau", "tau_prime")]
            ours = forward(model, networks.params(found.state), *inputs)
            capped = model.logit_cap * jnp.tanh(ours["out/logits_two_times"] / model.logit_cap)
            ours["out/log_probs_two_times"] = jax.nn.log_softmax(capped)
            for name in ("logits", "logits_two_times", "logits_tokens_two_times",
                         "log_probs_two_times"):  # fmt: skip
                checks.recorded(f"out/{name}_{weights}", ours[f"out/{name}"], floor=LOGITS32)


def masked_checkpoint(case: Case, checks: Checks) -> None:
    """A masked diffusion model: its config, or what it says of masked tokens with either cap."""
    if case.path.suffix == ".ckpt":
        found = official_lib.read(case.path)
        checks.exact("tokens and mask", (found.vocab_size, found.masked), (12, True))
        ours = settings.config_of(found, {"name": ""}, 10)
        known = (
            ours.loss.name,
            ours.model.attention_cap,
            ours.model.logit_cap,
            ours.model.mask_token,
        )
        checks.exact("loss, caps, mask", known, ("masked_diffusion", 0.0, 0.0, True))
        return
    found = official_lib.read(case.other(case.name.removesuffix("_expected")).path)
    with checks.precision(32):
        tokens, masked = networks.wide(case["in/x0"]), networks.wide(case["in/active"]) > 0
        for cap in case.option("softcap"):
            entry = case.entry | {"config": case.config | {"softcap": cap}}
            model = networks.model(dataclasses.replace(case, entry=entry), found.sizes, 0.0)
            net = model.net(networks.params(found.state))
            ours = log_probs(discrete.predict_masked(net, tokens, masked).posterior)
            checks.recorded(f"out/log_q_softcap{cap}", ours, floor=LOGITS32)


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
