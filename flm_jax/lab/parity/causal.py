"""The kind baselines/ar*: the autoregressive baseline, a causal network without time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax import config
from flm_jax.flow import clock as clock_lib
from flm_jax.flow.at import At
from flm_jax.flow.space import OneHot
from flm_jax.flow.trees import Params, Tree
from flm_jax.host import numerics
from flm_jax.interop import hub_layout, layout
from flm_jax.lab.parity import networks
from flm_jax.lab.parity.checks import Checks
from flm_jax.lab.parity.goldens import Case, GoldenError
from flm_jax.losses.autoregressive import Autoregressive
from flm_jax.models import dit
from flm_jax.samplers.autoregressive import LeftToRight
from flm_jax.sampling import Sampling

NO_CAP = 0.0  # the baselines' logits are not capped
NEVER = -1e6  # logit of a token that is not predicted


def forward(case: Case, checks: Checks) -> None:
    """Logits of a causal network."""
    network = Causal(case)
    for bits in (64, 32):
        with checks.precision(bits):
            net = network.model.net(network.params())
            tokens_BL = networks.wide(case["in/x0"])
            time_B = jnp.zeros(tokens_BL.shape[:1], net.table.dtype)  # it is not looked at
            logits = net(net.table[tokens_BL], time_B).posterior.logits().dense()
            checks.recorded("out/logits", logits)


def loss(case: Case, checks: Checks) -> None:
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


def sample(case: Case, checks: Checks) -> None:
    """Tokens written one by one with recorded Gumbel noise, by way of the cache; no mask."""
    network = Causal(case)
    never = (case.option("mask_index"),) if "mask_index" in case.config else ()
    sampler = LeftToRight(bos_id=case.option("bos_token_id"), never=never)
    for bits in (64, 32):
        with checks.precision(bits):
            noise_SBV = jnp.moveaxis(networks.wide(case["in/gumbel"]), 1, 0)
            steps, batch, _ = noise_SBV.shape

            @jax.jit
            def write(params, noise_SBV, steps=steps, batch=batch):
                net = network.model.net(params)
                at = At({"student": net}, OneHot({"student": net.table}), clock_lib.identity())
                keys_B = jax.random.split(numerics.key(0), batch)  # nothing is drawn
                sampling = Sampling(steps=steps)
                return sampler.run(at, keys_B, sampling, steps + 1, noise=noise_SBV).tokens_BL

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
        self.depth = sizes.depth
        self.entries = [e for e in layout.entries(sizes) if e.name in self.tensors]
        unknown = set(self.tensors) - {entry.name for entry in self.entries}
        if unknown:
            raise GoldenError(f"a causal network has no tensor {min(unknown)}")
        settings = config.ModelConfig(
            width=width,
            depth=sizes.depth,
            heads=case.option("n_heads"),
            mlp_ratio=mlp_ratio,
            dropout=0.0,
            logit_cap=NO_CAP,
            causal=True,
            remat="none",
            head_chunk=networks.HEAD_CHUNK,
        )
        self.model = dit.build(settings, sizes.vocab_size)

    def params(self) -> Params:
        """Our parameter tree in the float type of the current precision."""
        tree = hub_layout.tree_of(self.entries, self.depth, self.tensors)
        return jax.tree.map(networks.wide, tree)

    def official(self, tree: Tree) -> dict[str, np.ndarray]:
        """A tree shaped like parameters under the official names."""
        return networks.named_by(self.entries, tree)
