"""The recorded networks: our model and parameters from official names and a case's options."""

import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax
import numpy as np
from numpy.typing import ArrayLike

from flm_jax import config
from flm_jax.flow.trees import Params, Tree
from flm_jax.interop import hub_layout, layout
from flm_jax.lab.parity.goldens import Case, GoldenError
from flm_jax.models import dit

ATTENTION_CAP = 50.0  # no recorded run has another one; a case may say "softcap"
LOGIT_CAP = {"apr": 30.0, "feb": 0.0}
HEAD_CHUNK = 16  # tokens whose logits exist at one time: a few chunks of every case
WHOLE = 10_000  # more tokens than any case has
TABLE = "vocab_embed.embedding"
STUDENT = {"student": "param/"}
Models = tuple[tuple[str, dit.Model], ...]  # (role, architecture), for jit


def state(case: Case, prefix: str = "param/") -> dict[str, np.ndarray]:
    """The official parameters below a prefix, without the rotary buffer."""
    return {n: a for n, a in case.under(prefix).items() if n != layout.INV_FREQ}


def logit_cap(case: Case) -> float:
    """The soft cap of the logits: what the case says, else what its version has; 0 = none."""
    if "logit_cap" in case.config:
        return float(case.config["logit_cap"] or 0.0)
    if case.entry.get("version") not in LOGIT_CAP:
        raise GoldenError("neither a logit cap nor a version that implies one is recorded")
    return LOGIT_CAP[case.entry["version"]]


def model(
    case: Case, sizes: layout.Sizes, cap: float, heads: int | None = None, dtype: str = "float32"
) -> dit.Model:
    """The architecture of a network of these sizes; dropout comes from the case (README: 0)."""
    settings = config.ModelConfig(
        width=sizes.hidden_size,
        depth=sizes.depth,
        heads=case.option("n_heads") if heads is None else heads,
        cond_dim=sizes.cond_dim,
        mlp_ratio=sizes.mlp_ratio,
        dropout=float(case.config.get("dropout", 0.0)),
        attention_cap=float(case.config.get("softcap", ATTENTION_CAP)),
        logit_cap=cap,
        two_times=sizes.two_times,
        loss_weighting=sizes.loss_weighting,
        dtype=dtype,
        remat="none",
        head_chunk=HEAD_CHUNK,
    )
    return dit.build(settings, sizes.vocab_size)


def chunked(models: Models, bits: int) -> Models:
    """The (role, model) pairs of a `Family` for a precision.

    Float64 runs have all logits at one time, float32 runs chunk by chunk: both forms are tested,
    and the first one compiles faster.
    """
    if bits == 32:
        return models
    return tuple((role, dataclasses.replace(m, head_chunk=WHOLE)) for role, m in models)


def sizes_of(tensors: dict[str, np.ndarray]) -> layout.Sizes:
    return layout.sizes_of({name: array.shape for name, array in tensors.items()}, "the case")


def params(tensors: dict[str, np.ndarray]) -> Params:
    """Our parameter tree in the float type of the current precision."""
    return jax.tree.map(wide, hub_layout.to_params(tensors))


def wide(array: ArrayLike) -> jax.Array:
    """A recorded array on the device; floats in the widest type that is switched on.

    Converted by numpy: on the device it would be one more program for every shape.
    """
    array = np.asarray(array)
    dtype = np.dtype(float) if array.dtype.kind == "f" else array.dtype
    return jax.device_put(array.astype(jax.dtypes.canonicalize_dtype(dtype)))


def official(tree: Tree, sizes: layout.Sizes) -> dict[str, np.ndarray]:
    """A tree shaped like parameters (a gradient, an EMA) under the official names.

    Unlike `hub_layout.from_params` it keeps float64.
    """
    return named_by(layout.entries(sizes), tree)


def named_by(entries: Iterable[layout.Entry], tree: Tree) -> dict[str, np.ndarray]:
    """The same of some entries."""
    tree = jax.tree.map(np.asarray, tree)
    named = {}
    for entry in entries:
        leaf = functools.reduce(dict.__getitem__, entry.path, tree)
        array = leaf if entry.layer is None else leaf[entry.layer]
        named[entry.name] = array.T if entry.transpose else array
    return named


@dataclasses.dataclass(frozen=True)
class Family:
    """The networks of a case by role; ``sizes`` are the student's.

    ``joint_VW``: the tables of all networks side by side, float64. ``models`` is a tuple of
    (role, model), for jit.
    """

    tensors: dict[str, dict[str, np.ndarray]]
    models: Models
    sizes: layout.Sizes
    joint_VW: np.ndarray

    @classmethod
    def read(
        cls,
        case: Case,
        prefixes: dict[str, str] = STUDENT,
        cap: float | None = None,
        dtype: str = "float32",
    ) -> "Family":
        """The networks whose tensors are recorded under ``prefixes``, by role.

        ``cap`` of the logits is what the case says, unless given.
        """
        cap = logit_cap(case) if cap is None else cap
        tensors = {role: state(case, prefix) for role, prefix in prefixes.items()}
        sizes = {role: sizes_of(found) for role, found in tensors.items()}
        models = ((r, model(case, s, cap, dtype=dtype)) for r, s in sizes.items())
        joint_VW = np.concatenate([found[TABLE] for found in tensors.values()], axis=1)
        return cls(tensors, tuple(models), sizes["student"], joint_VW.astype(float))

    @property
    def narrow(self) -> bool:
        """Whether there are directions over the vocabulary that no network sees (P is not 1)."""
        return self.joint_VW.shape[1] < self.joint_VW.shape[0]

    def params(self) -> dict[str, Params]:
        """Our parameter trees by role, in the float type of the current precision."""
        return {role: params(found) for role, found in self.tensors.items()}

    def official(self, tree: Tree) -> dict[str, np.ndarray]:
        """A tree shaped like the student's parameters under the official names."""
        return official(tree, self.sizes)

    def seen(self, space: str) -> Callable[[np.ndarray], np.ndarray]:
        """What a recorded state (..., V) is in the space of that name."""
        return (lambda x: x @ self.joint_VW) if space == "projected" else (lambda x: x)
