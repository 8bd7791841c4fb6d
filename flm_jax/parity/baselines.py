"""The kinds baselines/*: autoregressive, masked and uniform diffusion on tokens."""

import collections
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax import config
from flm_jax.flow import clock as clock_lib
from flm_jax.flow import discrete
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.space import OneHot
from flm_jax.interop import layout
from flm_jax.losses.autoregressive import Autoregressive
from flm_jax.losses.base import Batch, Loss
from flm_jax.losses.masked_diffusion import MaskedDiffusion
from flm_jax.models import dit
from flm_jax.parity import networks
from flm_jax.parity.checks import Checks
from flm_jax.parity.goldens import Case, GoldenError
from flm_jax.samplers.autoregressive import LeftToRight
from flm_jax.samplers.discrete import Ancestral, AncestralMasked

NO_CAP = 0.0  # the baselines' logits are not capped
NEVER = -1e6  # logit of a token that is not predicted
TINY = 1e-10  # of the official draw


@functools.partial(jax.jit, static_argnames=("model", "loss"))
def run(
    params: Any, batch: Batch, draws: dict, clock: Any, *, model: dit.Model, loss: Loss
) -> tuple[dict[str, jax.Array], Any]:
    """What is recorded of every loss, by recorded name, and the gradient of the mean."""

    def objective(params):
        net = model.net(params)
        space = OneHot({"student": net.table})
        loss_BL, _ = loss.evaluate({"student": net}, batch, draws, space, clock)
        total, count = jnp.sum(loss_BL * batch.mask_BL), jnp.sum(batch.mask_BL)
        return total / count, {
            "out/loss": total / count,
            "out/loss_per_token": loss_BL,
            "out/nll_sum": total,
        }

    gradient, found = jax.grad(objective, has_aux=True)(params)
    return found, gradient


def masked_loss(case: Case, checks: Checks) -> None:
    """Loss per token and reduced, what led to it, and every gradient."""
    last_is_mask(case)

    def observe(loss, draws, batch):
        t = loss.times(draws)
        seen = jnp.where(loss.masked(draws, t), case.option("mask_index"), batch.tokens_BL)
        return {"mid/t": t, "mid/alpha_t": discrete.alpha(t), "mid/xt": seen}

    loss = MaskedDiffusion(t_min=case.option("sampling_eps"))
    compare_loss(case, checks, loss, {"mask": "draw/u_mask"}, observe)


def compare_loss(
    case: Case,
    checks: Checks,
    loss: Loss,
    names: dict[str, str],
    observe: Callable[..., dict[str, jax.Array]],
) -> None:
    """A loss on recorded draws, ``names`` ours to theirs; ``observe`` has the values on the way."""
    tensors = networks.state(case)
    sizes = networks.sizes_of(tensors)
    model = networks.model(case, sizes, NO_CAP)
    for bits in (64, 32):
        with checks.precision(bits):
            batch, draws = recorded(case, names)
            clock = clock_lib.identity()
            params = networks.params(tensors)
            found, gradient = run(params, batch, draws, clock, model=model, loss=loss)
            found |= observe(loss, draws, batch)
            for name, array in found.items():
                if np.issubdtype(array.dtype, np.integer):
                    checks.exact(name, array, case[name])
                else:
                    checks.recorded(name, array)
            for name, ours in networks.official(gradient, sizes).items():
                checks.gradient(name, ours, case[f"grad/{name}"].astype(np.float64))


def recorded(case: Case, names: dict[str, str]) -> tuple[Batch, dict[str, jax.Array]]:
    """The batch and the raw numbers of a loss. The official times are not permuted."""
    tokens_BL, mask_BL = networks.wide(case["in/x0"]), networks.wide(case["in/attention_mask"])
    index_B = jnp.arange(tokens_BL.shape[0], dtype=jnp.int32)
    draws = {"uniform": networks.wide(case["draw/eps"]), "permutation": index_B}
    draws |= {ours: networks.wide(case[theirs]) for ours, theirs in names.items()}
    return Batch(tokens_BL, mask_BL, index_B, tokens_BL.shape[0]), draws


def masked_step(case: Case, checks: Checks) -> None:
    """One step back, and the last one."""
    last_is_mask(case)

    def dense(posterior: Posterior, tokens_BL, alpha_t, alpha_s):
        """(p, q not normalised), both with the mask as last entry; shown tokens are certain."""
        mask = posterior.head.vocab_size
        p_BLV = jnp.pad(posterior.dense(), ((0, 0), (0, 0), (0, 1)))
        shown_BLV = jax.nn.one_hot(tokens_BL, mask + 1, dtype=p_BLV.dtype)
        p_BLV = jnp.where((tokens_BL == mask)[..., None], p_BLV, shown_BLV)
        show = discrete.unmask_probability(alpha_t, alpha_s)
        q_BLV = (show * p_BLV).at[..., mask].set(1.0 - show) * (1.0 - alpha_t)
        return p_BLV, q_BLV

    def keep(tokens_BL, drawn_BL):
        return np.where(tokens_BL == case.option("mask_index"), drawn_BL, tokens_BL)

    compare_step(case, checks, AncestralMasked(), dense, keep)


def compare_step(
    case: Case,
    checks: Checks,
    sampler: Ancestral,
    dense: Callable[..., tuple[jax.Array | None, jax.Array]],
    keep: Callable[..., np.ndarray] = lambda tokens_BL, drawn_BL: drawn_BL,
) -> None:
    """The distribution of a step, and the recorded draw from it by the official rule."""
    tensors = networks.state(case)
    sizes = networks.sizes_of(tensors)
    model = networks.model(case, sizes, NO_CAP)
    t, dt = case.option("t"), case.option("dt")
    s = 0.0 if case.stem.endswith("last_step") else t - dt

    @jax.jit
    def predict(params, tokens_BL, alpha_t, alpha_s):
        posterior = sampler.posterior(model.net(params), tokens_BL, alpha_t)
        return dense(posterior, tokens_BL, alpha_t, alpha_s)

    for bits in (64, 32):
        with checks.precision(bits):
            tokens_BL, u_BLV = networks.wide(case["in/xt"]), networks.wide(case["draw/u"])
            alphas = (discrete.alpha(networks.wide(np.float64(time))) for time in (t, s))
            p_BLV, q_BLV = predict(networks.params(tensors), tokens_BL, *alphas)
            checks.recorded("out/q_xs", q_BLV)
            if p_BLV is not None:
                checks.recorded("out/p_x0", p_BLV)
            drawn = np.argmax(np.asarray(q_BLV) / (TINY - np.log(np.asarray(u_BLV) + TINY)), -1)
            checks.exact("out/x_next", keep(np.asarray(tokens_BL), drawn), case["out/x_next"])


def causal_forward(case: Case, checks: Checks) -> None:
    """Logits of a causal network."""
    network = Causal(case)
    for bits in (64, 32):
        with checks.precision(bits):
            net = network.model.net(network.params())
            tokens_BL = networks.wide(case["in/x0"])
            logits = net(net.table[tokens_BL], None).posterior.logits().dense()
            checks.recorded("out/logits", logits)


def causal_loss(case: Case, checks: Checks) -> None:
    """Loss of every predicted token, reduced over those that count, and every gradient."""
    network, mask = Causal(case), case.option("mask_index")

    @functools.partial(jax.grad, has_aux=True)
    def gradient_of(params, tokens_BL, counts_BL):
        bias_V = params["head"]["bias"].at[mask].set(NEVER)
        net = network.model.net(params | {"head": params["head"] | {"bias": bias_V}})
        loss_BM = Autoregressive().next_token(net, tokens_BL)
        total = jnp.sum(loss_BM * counts_BL[:, 1:])
        mean = total / jnp.sum(counts_BL[:, 1:])
        return mean, {"out/loss": mean, "out/loss_per_token": loss_BM, "out/nll_sum": total}

    for bits in (64, 32):
        with checks.precision(bits):
            arrays = (networks.wide(case[f"in/{name}"]) for name in ("x0", "attention_mask"))
            gradient, found = jax.jit(gradient_of)(network.params(), *arrays)
            for name, array in found.items():
                checks.recorded(name, array)
            for name, ours in network.official(gradient).items():
                checks.gradient(name, ours, case[f"grad/{name}"].astype(np.float64))


def causal_sample(case: Case, checks: Checks) -> None:
    """Tokens written one by one with recorded Gumbel noise, by way of the cache."""
    network = Causal(case)
    sampler = LeftToRight(bos_id=case.option("bos_token_id"))
    for bits in (64, 32):
        with checks.precision(bits):
            noise_SBV = jnp.moveaxis(networks.wide(case["in/gumbel"]), 1, 0)
            steps, batch, _ = noise_SBV.shape

            @jax.jit
            def write(params, noise_SBV, steps=steps, batch=batch):
                net = network.model.net(params)
                space, clock = OneHot({"student": net.table}), clock_lib.identity()
                keys_B = jax.random.split(jax.random.key(0), batch)  # nothing is drawn
                options = {"steps": steps, "length": steps + 1, "noise": noise_SBV}
                return sampler.run({"student": net}, space, clock, keys_B, **options)[0]

            checks.exact("out/tokens", write(network.params(), noise_SBV), case["out/tokens"])


class Causal:
    """The causal network of a case: the official tensors without those of time."""

    def __init__(self, case: Case):
        self.tensors = networks.state(case)
        width = case.option("hidden_size")
        mlp_ratio = self.tensors["blocks.0.mlp.0.bias"].size // width
        sizes = layout.Sizes(
            case.option("vocab_size"), width, 1, case.option("n_blocks"), mlp_ratio, False, False
        )
        self.entries = [e for e in layout.entries(sizes) if e.name in self.tensors]
        unknown = set(self.tensors) - {entry.name for entry in self.entries}
        if unknown:
            raise GoldenError(f"a causal network has no tensor {min(unknown)}")
        settings = config.Model(
            width=width,
            depth=sizes.depth,
            heads=case.option("n_heads"),
            mlp_ratio=mlp_ratio,
            dropout=0.0,
            logit_cap=NO_CAP,
            causal=True,
            remat=False,
            head_chunk=networks.HEAD_CHUNK,
        )
        self.model = dit.build(settings, sizes.vocab_size)

    def params(self) -> Any:
        """Our parameter tree in the float type of the current precision."""
        params, layers = {}, collections.defaultdict(list)
        for entry in self.entries:
            tensor = networks.wide(self.tensors[entry.name])
            layers[entry.path].append(tensor.T if entry.transpose else tensor)
        stacked = {entry.path for entry in self.entries if entry.layer is not None}
        for path, arrays in layers.items():
            branch = functools.reduce(lambda tree, key: tree.setdefault(key, {}), path[:-1], params)
            branch[path[-1]] = jnp.stack(arrays) if path in stacked else arrays[0]
        return params

    def official(self, tree: Any) -> dict[str, np.ndarray]:
        """A tree shaped like parameters under the official names."""
        found = {}
        for entry in self.entries:
            leaf = np.asarray(functools.reduce(dict.__getitem__, entry.path, tree))
            leaf = leaf if entry.layer is None else leaf[entry.layer]
            found[entry.name] = leaf.T if entry.transpose else leaf
        return found


def last_is_mask(case: Case) -> None:
    """GoldenError unless the mask is the last token: ours always is."""
    vocab_size, mask = case.option("vocab_size"), case.option("mask_index")
    if mask != vocab_size - 1:
        raise GoldenError(f"the mask is token {mask}, not the last one of {vocab_size}")
