"""Which code runs which kind of case, and the run over a whole set."""

import concurrent.futures
import fnmatch
import gc
import itertools
import multiprocessing
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping

import jax

from flm_jax.errors import UserError
from flm_jax.host import numerics, processes
from flm_jax.lab.parity import (
    any_order,
    baselines,
    causal,
    clocks,
    distillation,
    few_steps,
    forward,
    goldens,
    initial,
    losses,
    programs,
    refinement,
    rounds,
    sampling,
    tasks,
    texts,
    training,
    two_model,
)
from flm_jax.lab.parity.checks import Checks, Row
from flm_jax.lab.parity.goldens import Case, GoldenError

Check = Callable[[Case, Checks], None]

# The beginning of a case's name -> what runs it; the longest that fits counts.
KINDS: dict[str, Check] = {
    "time/": clocks.time,
    "times/": clocks.draws,
    "dit/": forward.network,
    "flm/": losses.flow_matching,
    "fmlm/": distillation.flow_map,
    "two_model/stage1": two_model.residual,
    "two_model/stage2": two_model.second_stage,
    "baselines/ar_forward": causal.forward,
    "baselines/ar_loss": causal.loss,
    "baselines/ar_sample": causal.sample,
    "baselines/mdlm_loss": baselines.masked_loss,
    "baselines/mdlm_step": baselines.masked_step,
    "baselines/mdlm_last_step": baselines.masked_step,
    "baselines/duo_base_loss": baselines.uniform_loss,
    "baselines/duo_curriculum_loss": baselines.curriculum_loss,
    "baselines/duo_step": baselines.uniform_step,
    "baselines/duo_last_step": baselines.uniform_step,
    "sdtt_loss/": rounds.sdtt_loss,
    "dcd_loss/": rounds.dcd_loss,
    "sdtt_train/": rounds.sdtt_train,
    "dcd_train/": rounds.dcd_train,
    "sdtt_sample/": few_steps.sdtt,
    "mdlm_sample/": few_steps.mdlm,
    "duo_sample/": few_steps.duo,
    "psi_sample/": few_steps.psi,
    "sampler/flm_sampler": sampling.euler,
    "sampler/fmlm_": sampling.flow_map,
    "sampler/two_model_": sampling.two_model,
    "sampler/two_stage_": sampling.two_stage,
    "refinement/": refinement.refinement,
    "block_diffusion/": refinement.block_diffusion,
    "train/adamw": training.train,
    "train/ema": training.ema,
    "init/random": initial.random,
    "init/student": initial.student,
    "ckpt/": forward.checkpoint,
    "plus_dit/": forward.per_token,
    "plus_loss/": any_order.loss,
    "plus_train/": any_order.train,
    "plus_ckpt/fmlm_plus": forward.any_order_checkpoint,
    "plus_ckpt/mdlm": forward.masked_checkpoint,
    "plus_init/student": initial.any_order_students,
    "plus_init/from_mdlm": initial.from_masked,
    "text/detokenizers": texts.detokenizers,
    "text/group_texts": texts.rows,
    "text/sample_entropy": texts.entropy,
    "text/generative_perplexity": texts.perplexity,
    "text/tiny_gpt2": texts.scorer,
    "plus_data/sudoku": tasks.puzzle_rows,
    "plus_data/tinystories_rows": tasks.story_rows,
    "plus_data/tinygsm_rows": tasks.program_rows,
    "plus_data/gsm8k_prompts": tasks.problem_rows,
    "plus_data/gsm8k_scoring": tasks.answers,
}

# Beginnings of names of neighbouring cases that run through the same compiled programs.
SHARING = (
    "sampler/",
    "refinement/",
    "block_diffusion/",
    "ckpt/flm",
    "ckpt/",
    "fmlm/",
    "flm/",
    "two_model/",
    "plus_loss/",
    "sdtt_loss/",
    "dcd_loss/",
)


def run(
    directory: str | os.PathLike,
    only: str = "",
    emit: Callable[[Row], None] = lambda row: None,
    jobs: int = 1,
    whole: bool = False,
) -> list[Row]:
    """Every comparison of every case whose name has ``only`` in it (or matches it, as a pattern).

    ``emit`` is called with each row as it is made, in the order of the cases. Nothing that is
    wrong with a case stops the run or is omitted: it becomes a row that is not ok. With ``jobs``
    above 1 that many processes share the cases; most of the time goes into compiling. ``whole``
    compiles every loss and sampler as one program (`programs.whole`).

    Raises UserError if there is no set in ``directory``, or no case of that name.
    """
    cases = [case for case in goldens.read(directory) if chosen(case.name, only)]
    if not cases:
        raise UserError(f"no case of {directory} matches {only!r}; try a part of a name")
    collect_rarely()
    rows: list[Row] = []

    def keep(found: Iterable[Row]) -> None:
        for row in found:
            rows.append(row)
            emit(row)

    if jobs <= 1 or len(cases) == 1:
        for case in cases:
            keep(whole_cases([case], whole))
        return rows
    # Fresh processes: a forked one would inherit the locks of JAX's threads.
    fresh = multiprocessing.get_context("spawn")
    groups = together(cases)
    jobs = min(jobs, len(groups))
    with concurrent.futures.ProcessPoolExecutor(jobs, fresh, start_worker) as pool:
        largest_first = sorted(range(len(groups)), key=lambda i: -len(groups[i]))
        running = {i: pool.submit(whole_cases, groups[i], whole) for i in largest_first}
        for i in range(len(groups)):
            keep(running[i].result())
    return rows


def collect_rarely() -> None:
    """Tracing makes millions of small objects; looking for cycles among them costs a tenth."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def start_worker() -> None:
    """Makes a process of the pool ready."""
    collect_rarely()
    processes.end_with_parent()


def together(cases: list[Case]) -> list[list[Case]]:
    """What one process is to run: neighbours that share programs, any other case by itself."""

    def beginning(case):
        return next((name for name in SHARING if case.name.startswith(name)), case.name)

    return [list(group) for _, group in itertools.groupby(cases, beginning)]


def whole_cases(cases: list[Case], whole: bool = False) -> list[Row]:
    """The rows of some cases, one after the other."""
    with programs.whole(whole):
        return [row for case in cases for row in whole_case(case)]


def whole_case(case: Case) -> list[Row]:
    """The rows of one case, at least one."""
    rows: list[Row] = []
    # Accelerators round inputs to bf16 or TF32.
    with numerics.pinned(), jax.default_matmul_precision("highest"):
        run_case(case, rows.append)
    if not rows:
        Checks(case, rows.append).fail("-", "nothing was compared")
    forget_programs()
    return rows


def forget_programs(most: int = 25_000) -> None:
    """Frees compiled programs before they are too many: Linux aborts beyond 65,530 mappings."""
    mappings = pathlib.Path("/proc/self/maps")
    if mappings.exists() and mappings.read_text().count("\n") > most:
        jax.clear_caches()


def run_case(case: Case, emit: Callable[[Row], None]) -> None:
    """All comparisons of one case; whatever goes wrong is one more row that is not ok."""
    checks = Checks(case, emit)
    check = longest(KINDS, case.name)
    if check is None:
        checks.fail("-", f"unknown kind of case {case.name!r}")
        return
    try:
        check(case, checks)
    except (GoldenError, UserError) as error:
        checks.fail("-", str(error))
    except Exception as error:  # noqa: BLE001 - a damaged set must not hide the other cases
        checks.fail("-", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def chosen(name: str, only: str) -> bool:
    return not only or only in name or fnmatch.fnmatchcase(name, only)


def longest(known: Mapping[str, Check], name: str) -> Check | None:
    """The value of the longest key that ``name`` begins with, or None."""
    keys: Iterable[str] = (key for key in known if name.startswith(key))
    return known.get(max(keys, key=len, default=""))
