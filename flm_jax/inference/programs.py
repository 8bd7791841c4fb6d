"""Compiled samplers of a model: built on first use, kept by what they were compiled for."""

import dataclasses
import functools
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.experiment import Experiment
from flm_jax.flow.at import GUIDE, STUDENT, At
from flm_jax.flow.randomness import sequence_keys
from flm_jax.host import numerics, progress, sharding
from flm_jax.inference import scoring
from flm_jax.samplers.base import Given, Sampler, Written
from flm_jax.samplers.tokens import TokenSampler
from flm_jax.sampling import DROPOUT, Sampling
from flm_jax.tokenizers import Tokenizer

# (parameters by role, constant of the space, key, index of the first sample, given) -> Written
Compiled = Callable[[dict[str, Any], jax.Array | None, jax.Array, jax.Array, Given | None], Written]
Tables = dict[str, jax.Array]  # embedding tables by role
_PLAIN = Sampling()  # no temperature, no guide


class Program(NamedTuple):
    """What one compiled sampler is for: the key under which it is kept."""

    rule: Sampler
    sampling: Sampling
    batch: int
    length: int
    trajectory: bool
    given: bool = False  # whether some tokens are


class Programs:
    """The compiled samplers of one model.

    Args:
      experiments: those of its networks by role; "student" is the one that samples, and "guide"
        another model that guides it.
      tokenizer: its tokenizer; some samplers begin with BOS.
      mesh: the devices that share a batch; None: one device.

    Attributes:
      kept: the compiled ones.
    """

    def __init__(
        self,
        experiments: Mapping[str, Experiment],
        tokenizer: Tokenizer,
        mesh: jax.sharding.Mesh | None = None,
    ):
        self._experiments = experiments
        self._tokenizer = tokenizer
        self.mesh = mesh
        self.kept: dict[Program, Compiled] = {}
        self._made_of: list[weakref.ref[jax.Array]] = []
        self._constant: jax.Array | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickled without what is compiled and without the mesh: neither can travel."""
        state = {**vars(self), "kept": {}, "mesh": None, "_made_of": [], "_constant": None}
        state.pop("_make_constant", None)
        state.pop("scorer", None)
        return state

    def compiled(
        self, program: Program, params: dict[str, Any], constant: jax.Array | None
    ) -> Compiled:
        """The compiled sampler for parameters, and `constant`, of these shapes and places."""
        if program not in self.kept:
            with progress.Waiting(f"compiling the sampler for {counted(program.sampling.steps)}"):
                lowered = self.lowered(program, params, constant, numerics.key(0))
                self.kept[program] = lowered.compile()
        return self.kept[program]

    def lowered(
        self, program: Program, params: Any, constant: Any, key: jax.Array | jax.ShapeDtypeStruct
    ) -> jax.stages.Lowered:
        """What `compiled` compiles; arrays, or their shapes and places."""
        sample = functools.partial(self._sample, program)
        jitted = jax.jit(sample, out_shardings=self._everywhere)
        return jitted.lower(params, constant, key, jnp.int32(0), _no_tokens(program))

    def constant(self, rule: Sampler, params: dict[str, Any]) -> jax.Array | None:
        """What the space needs of the tables, for a sampler of vectors.

        Made once (a pass over tables and a Cholesky factor, as much as a step of one sample), and
        anew where the tables are other arrays than before.
        """
        if isinstance(rule, TokenSampler):
            return None
        tables = {role: params[role]["embed"]["table"] for role in self._experiments}
        if not self._is_of([*tables.values()]):
            self._constant = self._make_constant(tables)
            # Weakly: the memory of tables that nobody else has any more is free at once.
            self._made_of = [weakref.ref(table) for table in tables.values()]
        return self._constant

    def _is_of(self, tables: list[jax.Array]) -> bool:
        """Whether the constant was made of these tables; an array of NumPy may have changed."""
        made_of = [made() for made in self._made_of]
        return len(made_of) == len(tables) and all(
            isinstance(table, jax.Array) and table is made
            for table, made in zip(tables, made_of, strict=True)
        )

    @functools.cached_property
    def _make_constant(self) -> Callable[[Tables], jax.Array | None]:
        def make(tables: Tables) -> jax.Array | None:
            return self._experiments[STUDENT].space(tables).constant()

        return jax.jit(make, out_shardings=self._everywhere)

    @property
    def _everywhere(self) -> jax.sharding.Sharding | None:
        """Where results go: to all devices of the mesh."""
        return None if self.mesh is None else sharding.replicated(self.mesh)

    def whole_batch(self, batch: int) -> int:
        """The next batch size that the devices can share."""
        devices = 1 if self.mesh is None else sharding.batch_devices(self.mesh)
        return -(-batch // devices) * devices

    def _sample(
        self,
        program: Program,
        params: dict[str, Any],
        constant: jax.Array | None,
        key: jax.Array,
        first: jax.Array,
        given: Given | None,
    ) -> Written:
        rule, sampling, batch, length, trajectory, _ = program
        index_B = first + jnp.arange(batch)
        if self.mesh is not None:
            rows = sharding.batch_sharding(self.mesh)
            index_B = jax.lax.with_sharding_constraint(index_B, rows)
            given = jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, rows), given)
        at = self._at(params, constant, rule.needs.two_times, sampling)
        keys_B = sequence_keys(key, index_B)
        bos_id = self._tokenizer.bos_id
        options = {"trajectory": trajectory, "bos_id": bos_id, "given": given}
        return rule.run(at, keys_B, sampling, length, **options)

    def _at(
        self,
        params: dict[str, Any],
        constant: jax.Array | None = None,
        two_times: bool = False,
        sampling: Sampling = _PLAIN,
    ) -> At:
        """The networks, their space and the clock; ``two_times``: the student is told both.

        So is a guide. One with dropout is the student's network with that much of it.
        """
        experiments = dict(self._experiments)
        student = experiments[STUDENT]
        if sampling.guided and sampling.guide == DROPOUT:
            architecture = student.config.model
            architecture = dataclasses.replace(architecture, dropout=sampling.guide_dropout)
            config = dataclasses.replace(student.config, model=architecture)
            experiments[GUIDE] = dataclasses.replace(student, config=config)
            params = {**params, GUIDE: params[STUDENT]}
        nets = {
            # A flow map that is asked at one time only is a denoiser.
            role: (made.net if role in (STUDENT, GUIDE) and two_times else made.denoiser)(
                params[role], sampling.denoiser_temperature
            )
            for role, made in experiments.items()
        }
        space = student.space({role: net.table for role, net in nets.items()})
        return At(nets, space.with_constant(constant), student.clock)

    @functools.cached_property
    def scorer(self) -> Callable[[dict[str, Any], Given, jax.Array], jax.Array]:
        """`scoring.open_log_prob` of the student: (parameters, given, keys (B,)) -> (B, L)."""
        student = self._experiments[STUDENT]

        def log_prob(params, given, keys_B):
            at = self._at(params, two_times=student.config.model.two_times)
            return scoring.open_log_prob(at, student, given, keys_B)

        return jax.jit(log_prob)


def _no_tokens(program: Program) -> Given | None:
    """Given tokens of the shapes that a program takes."""
    shape = program.batch, program.length
    return Given(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)) if program.given else None


def counted(steps: int, evaluations: int | None = None) -> str:
    """ "1 step", "8 steps"; "8 steps (16 evaluations)" if those are as many."""
    many = "" if evaluations in (None, steps) else f" ({evaluations} evaluations)"
    return f"{steps} step{'s' * (steps > 1)}{many}"
