"""Memory of one training step on one chip, by formula.

With n = tokens of a micro-batch on the chip, batch * length / (data * fsdp * accumulation), D the
width, N the depth, V the vocabulary columns on it, W the width of the tables side by side, e the
network evaluations without gradient per token (1.5 for PSD), d of them those with a forward
derivative (LSD and ESD 0.5), bytes of float32 except where ``model.dtype`` halves them:

    state          parameters, two moments, EMA: exact, shared as `sharding` does it
    gradient       the size of the parameters, twice with accumulation
    frozen         teachers: exact
    residuals      n D (N + 1), what rematerialised layers keep, of two bytes with
                   ``model.stream_dtype`` bfloat16; N times 9 n D more where they keep
                   results of products; without rematerialisation N times 22 n D and four arrays of
                   attention scores more
    block          23 n D and 4.5 arrays of attention scores: one block while its gradient is made.
                   Where attention takes blocks of queries (`models.attention`) the scores are those
                   of one block and none are kept; a kernel (splash, tokamax) has none
    head           2.75 + 1.8 e + 3.9 d arrays (chunk, V); block and head are not needed at the same
                   time, but 0.3 of the smaller one is not reused
    space          projected: 4 n W and 4 W^2, and no array of the vocabulary: the noise's gradient
                   of a table is made after the blocks'; one-hot: (1 + 1.2 e) arrays (n, V)

The factors are what XLA's programs have by `validate`; see benchmarks/plan.md for the errors.
"""

import math

import jax

from flm_jax import config as config_lib
from flm_jax.flow import chunks
from flm_jax.flow.trees import Tree
from flm_jax.host import sharding
from flm_jax.lab.plan.program import Work
from flm_jax.models import attention, dit

BYTES = 4  # of a float32
BLOCK_WIDTHS = 23.0  # arrays (n, D) alive in one block's backward pass; MLP arrays count four
BLOCK_SCORES = 4.5  # arrays (heads, queries, L) per sequence there
HEAD_ARRAYS, HEAD_TARGET_ARRAYS = 2.75, 1.8  # (chunk, V): in all, and per evaluation of a target
HEAD_DERIVATIVE_ARRAYS = 3.9  # (chunk, V), more where it has a forward derivative
PROJECTED_STATES = 4.0  # (n, W)
DENSE_STATES, DENSE_TARGET_STATES = 1.0, 1.2  # (n, V): in all, and per evaluation of a target
NOT_REUSED = 0.3

STATE, GRADIENT, FROZEN = "parameters, moments, EMA", "gradient", "frozen networks"
RESIDUALS, BUSIEST, SPACE = "residuals", "a block or a chunk of the head", "state and noise"
GATHERED = "gathered parameters"


def memory(work: Work, mesh: tuple[int, int, int], accelerator: bool) -> dict[str, float]:
    """Bytes on one chip at the fullest moment, by what they are for."""
    data, fsdp, tensor = mesh
    config, model = work.config, work.config.model
    width, depth, length = model.width, model.depth, config.data.length
    rows = config.train.batch_size / (data * fsdp * config.optim.accumulation_steps)
    tokens, vocab, targets = rows * length, work.vocab_size / tensor, work.evaluations - 1
    value = (BYTES + (2 if model.dtype == "bfloat16" else BYTES)) / 2  # of one entry, on average
    queries = queries_at_once(model, length)
    scores = BYTES * rows * model.heads * queries * length
    kept_scores = scores if queries == length else 0.0
    block = value * tokens * width * BLOCK_WIDTHS + scores * BLOCK_SCORES
    chunk = chunk_tokens(work, rows, accelerator)
    arrays = HEAD_ARRAYS + HEAD_TARGET_ARRAYS * targets + HEAD_DERIVATIVE_ARRAYS * work.derivatives
    head = BYTES * chunk * vocab * arrays
    saved = {
        "full": 0.0,
        "products": depth
        * (BYTES * tokens * width * (5 + dit.kept_ratio(model.mlp, model.mlp_ratio))),
        "none": depth
        * (value * tokens * width * dit.SAVED_WIDTHS + kept_scores * dit.SAVED_SCORES),
    }[remembered(model, rows, length, accelerator)]
    params = bytes_per_chip({"params": work.state.params}, mesh)
    found = {
        STATE: bytes_per_chip(work.state, mesh),
        GRADIENT: params * (2 if config.optim.accumulation_steps > 1 else 1),
        FROZEN: bytes_per_chip(work.frozen, mesh),
        RESIDUALS: (2 if model.stream_dtype == "bfloat16" else BYTES) * tokens * width * (depth + 1)
        + saved,
        BUSIEST: max(block, head) + NOT_REUSED * min(block, head),
    }
    if fsdp > 1:  # one layer's parameters at a time, and the head, come from the other chips
        found[GATHERED] = BYTES * (width * vocab + (4 + 2 * model.mlp_ratio) * width * width)
    if work.projected:
        states = PROJECTED_STATES * tokens * work.joint_width + 4 * work.joint_width**2
        found[SPACE] = BYTES * states
    else:
        states = DENSE_STATES + DENSE_TARGET_STATES * targets
        found[SPACE] = BYTES * states * tokens * work.vocab_size
    return found


def remembered(model: config_lib.ModelConfig, rows: float, length: int, accelerator: bool) -> str:
    """What the blocks keep of (rows, length) tokens for their backward pass; see `models.dit`."""
    return dit.remembered(
        (math.ceil(rows), length, model.width),
        remat=model.remat,
        unroll=model.scan_unroll,
        depth=model.depth,
        heads=model.heads,
        mlp_ratio=dit.kept_ratio(model.mlp, model.mlp_ratio),
        kind="accelerator" if accelerator else "cpu",
    )[0]


def queries_at_once(model: config_lib.ModelConfig, length: int) -> int:
    """Queries of a sequence whose scores exist at one time, as `models.attention` decides it."""
    if model.attention in ("splash", "tokamax"):
        return 0
    return attention.queries(model.attention, length, model.width // model.heads)


def chunk_tokens(work: Work, rows: float, accelerator: bool) -> float:
    """Tokens whose logits exist at one time, as `models.dit` and `flow.chunks` decide it.

    Losses of two times have a loop for the rows off the diagonal, which needs most, unless all rows
    are one piece.
    """
    budget = dit.CHUNK_MEGABYTES["accelerator" if accelerator else "cpu"]
    wanted = work.config.model.head_chunk or chunks.tokens_for(work.vocab_size, budget)
    length = work.config.data.length

    def positions(rows: float) -> int:
        slices = math.ceil(length / max(1, min(length, wanted // max(rows, 1))))
        return math.ceil(length / slices)

    if positions(rows) < length:
        rows = rows * work.off_diagonal
    return rows * positions(rows)


def bytes_per_chip(tree: Tree, mesh: tuple[int, int, int]) -> float:
    """Bytes of the arrays of a tree on one chip, shared by the rules that training uses."""
    axis_sizes: dict[str, int] = dict(zip(sharding.AXES, mesh, strict=True))

    def one(path, leaf):
        name = "/".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path)
        axes = sharding.partition(name, leaf.shape, axis_sizes)
        parts = math.prod(axis_sizes[a] for a in axes if a)
        return leaf.dtype.itemsize * math.prod(leaf.shape) / parts

    return sum(jax.tree.leaves(jax.tree_util.tree_map_with_path(one, tree)))
