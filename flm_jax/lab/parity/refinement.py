"""The kinds refinement and block_diffusion: every state, answer and commit, to the tokens."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.flow.at import STUDENT
from flm_jax.flow.clock import Clock, build, identity
from flm_jax.flow.space import SPACES
from flm_jax.flow.trees import Params
from flm_jax.lab.parity import networks, programs
from flm_jax.lab.parity.checks import Checks, case_record
from flm_jax.lab.parity.goldens import Case
from flm_jax.lab.parity.sampling import from_recorded
from flm_jax.samplers import BlockDiffusion, Refinement
from flm_jax.samplers.base import Given, Trajectory
from flm_jax.samplers.refinement import UNIFORM_BUDGET
from flm_jax.samplers.rounds import JUMP, RoundSampler, Schedule


@programs.compiled(static_argnames=("models", "sampler", "space", "steps"))
def run(
    params: dict[str, Params], first_BLV: jax.Array, noise: jax.Array | None, given: Given | None,
    given_SBL: jax.Array, clock: Clock, *, models: networks.Models, sampler: RoundSampler,
    space: str, steps: int,
) -> tuple[jax.Array, Trajectory, jax.Array]:  # fmt: skip
    """Tokens, trajectory and log-probabilities (S, B, L, V), in the space of that name.

    ``given_SBL``: where tokens are given in every evaluation, as recorded. The network is asked
    once more at every state, because a trajectory has no answers (B, L, V).
    """
    batch, length, _ = first_BLV.shape
    at, tokens_BL, path = from_recorded(
        sampler, params, models, first_BLV, noise, clock, space, steps, given
    )
    schedule = Schedule.of(steps, sampler.rounds_for(steps, length), 1.0)

    def flat(x):
        return x.reshape(-1, *x.shape[2:])

    tau_s, tau_t = (jnp.repeat(x, batch) for x in (schedule.tau_S, schedule.tau_next_S))
    states = flat(path.states[:-1])
    asked = at.given(flat(given_SBL)).ask(STUDENT, states, tau_s, tau_t)
    log_p = asked.each_chunk(functools.partial(jax.nn.log_softmax, axis=-1))
    return tokens_BL, path, log_p.reshape(steps, batch, length, -1)


def refinement(case: Case, checks: Checks) -> None:
    """Rounds of posterior refinement."""
    asked = case.option("refinement")
    rounds, flow_steps = int(asked["rounds"]), max(1, int(asked["flow_steps"]))
    top_k = asked["top_k"]
    sampler = Refinement(
        inside=JUMP,
        fresh_noise=bool(asked["fresh_noise"]),
        top_k=UNIFORM_BUDGET if top_k == "uniform_budget" else max(0, int(top_k)),
        rounds=rounds,
        threshold=float(asked["threshold"]),
    )
    steps = rounds * flow_steps
    given_RBL = case["mid/open"] == 0
    ends = np.arange(flow_steps - 1, steps, flow_steps)
    given_SBL = np.repeat(given_RBL, flow_steps, axis=0)
    checks.exact("nfe", steps, case_record(case, "nfe"))
    for path in compare(case, checks, sampler, "draw/noise", given_SBL, np.arange(steps)):
        checks.exact("mid/pred", path.tokens_SBL[ends], case["mid/pred"])
        open_RBL, p_RBL = ~given_RBL, path.confidence_SBL[ends]
        recorded = np.where(open_RBL, case["mid/confidence"], 1.0)
        if checks.bits == 64:
            recorded = np.where(open_RBL, case["mid64/confidence"], 1.0)
            checks.close("mid/confidence", p_RBL, recorded, 1e-9)
        else:
            tolerance = 10.0 * case_record(case, "fp32_vs_fp64")["mid/confidence"][0]
            checks.close("mid/confidence", p_RBL, recorded, max(tolerance, 1e-6))
        _commits(case, checks, sampler, open_RBL, np.asarray(p_RBL))


def _commits(
    case: Case, checks: Checks, sampler: Refinement, open_RBL: np.ndarray, p_RBL: np.ndarray
) -> None:
    """What every round commits of the open cells, from our own confidences."""
    rounds, no_keys = len(open_RBL), jnp.zeros(0)  # nothing is drawn
    given = zip(range(rounds), open_RBL, jnp.asarray(p_RBL), strict=True)
    chosen = [sampler.commit(jnp.asarray(r), rounds, o, p, no_keys) for r, o, p in given]
    checks.exact("mid/committed", np.stack(chosen)[:-1], case["mid/committed"][:-1] == 1)
    if "mid/budget" in case:
        budget = [sampler.budget(open_BL, rounds - r) for r, open_BL in enumerate(open_RBL)]
        checks.exact("mid/budget", np.stack(budget), case["mid/budget"])
    if sampler.threshold >= 0.0:
        passed = open_RBL & (p_RBL >= sampler.threshold)
        checks.exact("mid/passed", passed, case["mid/passed"] == 1)


def block_diffusion(case: Case, checks: Checks) -> None:
    """Blocks from left to right; one block as long as the text is the plain sampler."""
    length = case["draw/z0"].shape[1]
    sampler = BlockDiffusion(inside=JUMP, block_length=int(case.option("block_length")))
    each, blocks = int(case.option("steps_per_block")), -(-length // sampler.block_length)
    begin_S = np.repeat(np.arange(blocks) * sampler.block_length, each)
    before_SBL = np.arange(length)[None, None] < begin_S[:, None, None]
    prompt_BL = case["in/prompt_mask"] == 1 if "in/prompt_mask" in case else False
    given_SBL = np.broadcast_to(before_SBL | prompt_BL, (len(begin_S), *case["draw/z0"].shape[:2]))
    asked_S = np.flatnonzero((~given_SBL).any((1, 2)))  # what is all given is skipped officially
    checks.exact("nfe", len(asked_S), case_record(case, "nfe"))
    for _ in compare(case, checks, sampler, "draw/z0", given_SBL, asked_S):
        pass


def compare(
    case: Case,
    checks: Checks,
    sampler: RoundSampler,
    first: str,
    given_SBL: np.ndarray,
    asked_S: np.ndarray,
) -> Iterator[Trajectory]:
    """States, answers, times and tokens in both spaces and precisions; yields the trajectories.

    ``first`` names the first noise; ``asked_S`` are the evaluations that are recorded.
    """
    family = networks.Family.read(case)
    given = None
    if "in/prompt_mask" in case:
        given = Given(networks.wide(case["in/x0"]), networks.wide(case["in/prompt_mask"] == 1))
    noise = "draw/noise_rounds"
    for bits in (64, 32):
        with checks.precision(bits):
            plain = bool(case.option("skip_time_reparam"))
            clock = identity() if plain else build(family.sizes.vocab_size)
            inputs = (
                family.params(),
                networks.wide(case[first]),
                networks.wide(case[noise]) if noise in case else None,
                given,
                jnp.asarray(given_SBL),
                clock,
            )
            models = networks.chunked(family.models, bits)
            found = []
            for space in SPACES:
                options = {"sampler": sampler, "space": space, "steps": len(given_SBL)}
                tokens, path, log_p = run(*inputs, models=models, **options)
                states, view = np.asarray(path.states)[:-1], family.seen(space)
                checks.exact(f"out/tokens {space}", tokens, case["out/tokens"])
                checks.recorded("mid/state", states[asked_S], space=space, view=view)
                if "mid/log_probs" in case:  # left out where it is large
                    checks.recorded("mid/log_probs", np.asarray(log_p)[asked_S], space=space)
                found.append(jax.tree.map(np.asarray, path))
            schedule = Schedule.of(
                len(given_SBL), sampler.rounds_for(len(given_SBL), given_SBL.shape[2]), 1.0
            )
            for name, tau_S in ("s", schedule.tau_S), ("t", schedule.tau_next_S):
                told = np.where(given_SBL, 1.0, np.asarray(tau_S)[:, None, None])
                checks.recorded(f"mid/tau_{name}", told[asked_S])
            yield found[-1]
