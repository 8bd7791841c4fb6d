"""FLOPs and time of one training step, by formula.

FLOPs are matrix products. An evaluation of the network costs `benchmark.cost.evaluation_flops` per
token, the gradient of the one that is differentiated twice that, its blocks once more where they
are rematerialised; a forward derivative (LSD, ESD) doubles the evaluation it belongs to, on the
share of the batch off the diagonal. A denoiser's answer that moves the state costs a product of
V W per token and its logits, which the loss makes again. The time of a step is

    max(products at share * peak, memory traffic) + exact products of the noise + exposed * links

* noise (projected space): the Gram matrix, of tables of width D one product for every pair, V W (W
  + D), and the gradient of one of them, 2 V W D, on every chip, and six W^2 per token, in full
  float32;
* memory traffic: the state three times (read, read by the update, written), 72 arrays (n, D) per
  block (12 in six passes), 6 passes over the logits, 4 more per evaluation of a target, and for
  entmax 30 bisection steps;
* links: gradients are reduced once a step; with fsdp parameters are gathered for every pass of
  every micro-batch; a tensor axis exchanges a few (n, D) per use of head and table.
"""

import dataclasses

from flm_jax.lab.plan.chips import Chip
from flm_jax.lab.plan.memory import BYTES, bytes_per_chip, queries_at_once
from flm_jax.lab.plan.program import Work
from flm_jax.training import cost

EXPOSED = 0.5  # share of communication that does not hide behind products
BLOCK_TRAFFIC = 72.0
LOGIT_PASSES, TARGET_PASSES, BISECTION_PASSES = 6.0, 4.0, 30.0
TENSOR_EXCHANGES = 6.0


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Of one step."""

    products: float
    memory: float
    noise: float
    links: float

    @property
    def total(self) -> float:
        return max(self.products, self.memory) + self.noise + EXPOSED * self.links

    @property
    def limit(self) -> str:
        """What takes longest."""
        values = dataclasses.asdict(self) | {"links": EXPOSED * self.links}
        return max(values, key=values.__getitem__)


def flops(work: Work) -> float:
    """Of one step on all chips, without the noise."""
    model = work.config.model
    per_token = cost.evaluation_flops(model, work.vocab_size, work.config.data.length)
    once = sum(per_token.values())
    # What "auto" means on a CPU is not asked here: at sizes worth a plan it is "full", too.
    again = {"none": 0.0, "products": per_token["attention"]}.get(
        model.remat, once - per_token["head"]
    )
    if queries_at_once(model, work.config.data.length) not in (0, work.config.data.length):
        again += per_token["attention"] / 2  # the scores of a block of queries, once more
    moved = (per_token["head"] + 2.0 * work.vocab_size * work.joint_width) * work.moves
    return work.tokens * (once * (work.evaluations + 2 + work.derivatives) + again + moved)


def noise_flops(work: Work, mesh: tuple[int, int, int]) -> float:
    """Of one step on one chip, in full float32."""
    data, fsdp, tensor = mesh
    if not work.projected:
        return 0.0
    joint, width = work.joint_width, work.config.model.width
    once = work.vocab_size / tensor * joint * (joint + 3.0 * width)  # per micro-batch
    tokens = work.tokens / (data * fsdp)
    return work.config.optim.accumulation_steps * once + 6.0 * tokens * joint**2


def traffic(work: Work, mesh: tuple[int, int, int]) -> float:
    """Bytes of one step through one chip's memory."""
    data, fsdp, tensor = mesh
    model, tokens = work.config.model, work.tokens / (data * fsdp)
    passes = LOGIT_PASSES + TARGET_PASSES * (work.evaluations - 1)
    passes += BISECTION_PASSES * work.bisected
    logits = passes * tokens * work.vocab_size / tensor
    blocks = BLOCK_TRAFFIC * (work.evaluations + 2) / 3 * tokens * model.width * model.depth
    dense = 0.0 if work.projected else 8.0 * work.evaluations * tokens * work.vocab_size
    return 3 * bytes_per_chip(work.state, mesh) + BYTES * (logits + blocks + dense)


def sent(work: Work, mesh: tuple[int, int, int]) -> float:
    """Bytes that one chip sends in one step."""
    data, fsdp, tensor = mesh
    model, micro = work.config.model, work.config.optim.accumulation_steps
    params = bytes_per_chip({"params": work.state.params}, (1, 1, tensor))
    moved = 2 * params * (1 - 1 / (data * fsdp))
    if fsdp > 1:
        passes = work.evaluations + (1 if model.remat == "none" else 2)
        moved += passes * micro * params * (1 - 1 / fsdp)
    if tensor > 1:
        tokens = work.tokens / (data * fsdp)
        share = 1 - 1 / tensor
        moved += TENSOR_EXCHANGES * BYTES * work.evaluations * tokens * model.width * share
    return moved


def link_rate(chip: Chip, chips: int) -> float:
    """Bytes/s that each of so many chips can send to the others."""
    crosses = 0 < chip.per_host < chips
    return 1e9 * (chip.network_gbs if crosses else chip.link_gbs)


def seconds(work: Work, chip: Chip, mesh: tuple[int, int, int], share: float) -> Seconds:
    """Of one step on a mesh of such chips whose products reach ``share`` of the peak."""
    data, fsdp, tensor = mesh
    chips = data * fsdp * tensor
    low = work.config.model.dtype == "bfloat16"
    peak = 1e12 * (chip.bf16_tflops if low else chip.float32_tflops)
    return Seconds(
        products=flops(work) / (chips * peak * share),
        memory=traffic(work, mesh) / (1e9 * chip.memory_gbs),
        noise=noise_flops(work, mesh) / (1e12 * chip.exact_tflops * share),
        links=sent(work, mesh) / link_rate(chip, chips) if chips > 1 else 0.0,
    )
