"""Any loss on recorded draws, in either space: values, values on the way, and gradients.

Nothing is computed a second time for the values on the way: while the loss runs, methods of it
write down what they are given and what they return (`Listener`).
"""

import contextlib
import dataclasses
import functools
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.flow import clock as clock_lib
from flm_jax.flow import noise as noise_lib
from flm_jax.flow import space as space_lib
from flm_jax.flow.at import TEACHER, At, tables_of
from flm_jax.flow.net import Net
from flm_jax.flow.trees import Params
from flm_jax.lab.parity import networks, programs
from flm_jax.lab.parity.checks import Checks
from flm_jax.lab.parity.goldens import Case
from flm_jax.losses.base import Batch, Loss

# In float32 the Gram matrix of a table with fewer rows than columns is singular but for eta, so its
# condition number is 1 / eta and solves lose that much. Nobody trains so (V > 2 D is projected).
SINGULAR32 = float(np.finfo(np.float32).eps) / noise_lib.JITTER
NO_JITTER = 1e-13  # eta for float64: the projection is then the exact one to about 1e-9


@dataclasses.dataclass(frozen=True)
class Shared(space_lib.Projected):
    """The projected space with a ``share`` of the gradient through its noise.

    1 is the space itself. With 0 no gradient reaches the table through the noise: what is left is
    the part that comes through the clean tokens. One compiled program serves both.
    """

    share: jax.Array | float = 1.0

    def scatter(self, noise: jax.Array, scale: jax.Array | float = 1.0) -> jax.Array:
        state = super().scatter(noise, scale)
        return self.share * state + jax.lax.stop_gradient((1.0 - self.share) * state)


Owner = type | types.ModuleType
SPACES = {"onehot": space_lib.OneHot, "projected": Shared}


class Call(NamedTuple):
    """One call of a function that is listened to; a method's ``given`` begins with its object."""

    given: tuple
    returned: Any


class Listener:
    """Remembers the calls of some functions, by name and in order, inside ``with``.

    A function is given as its owner (a class or a module, which holds the wrapper for that long)
    and its name.
    """

    def __init__(self, *functions: tuple[Owner, str]):
        self.functions = functions
        self.calls: dict[str, list[Call]] = defaultdict(list)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for owner, name in self.functions:
                stack.callback(_restore, owner, name, vars(owner).get(name))
                setattr(owner, name, self._wrapped(name, getattr(owner, name)))
            yield

    def first(self, name: str) -> Any:
        """What the first call of that name returned."""
        return self.calls[name][0].returned

    def _wrapped(self, name: str, function: Callable) -> Callable:
        @functools.wraps(function)
        def wrapper(*given, **options):
            returned = function(*given, **options)
            self.calls[name].append(Call(given, returned))
            return returned

        return wrapper


def _restore(owner: Owner, name: str, before: object) -> None:
    """Puts an attribute back; one that was inherited goes away."""
    if before is None:
        delattr(owner, name)
    else:
        setattr(owner, name, before)


class Observer(NamedTuple):
    """What to read besides the loss: functions to listen to, and values from their calls.

    ``read(listener, loss, batch, clock)`` gives arrays by recorded name, inside the compiled and
    differentiated function. The calls of the networks (as ``"__call__"``, the student's first) and
    of the space's ``"corrupt"`` are heard anyway.
    """

    functions: tuple[tuple[Owner, str], ...]
    read: Callable[[Listener, Loss, Batch, clock_lib.Clock], dict[str, jax.Array]]


SILENT = Observer((), lambda listener, loss, batch, clock: {})


@programs.compiled(static_argnames=("models", "loss", "space", "observer"))
def run(
    params: dict[str, Params], batch: Batch, draws: dict[str, jax.Array], clock: clock_lib.Clock,
    *, models: networks.Models, loss: Loss, space: str, observer: Observer = SILENT,
    share: jax.Array | float = 1.0,
) -> tuple[dict[str, jax.Array], Params]:  # fmt: skip
    """What is recorded of one loss, by recorded name, and the student's gradient of the mean.

    ``draws`` are those of the loss, with dense noise (B, L, V) if there is any; ``share`` is that
    of `Shared`.
    """
    options = {"share": share} if space == "projected" else {}

    def place(own):
        every = params | {"student": own}
        nets = {role: model.net(every[role]) for role, model in models}
        if TEACHER in nets and dict(models)[TEACHER].module.two_times:
            nets[TEACHER] = nets[TEACHER].on_diagonal()
        return At(nets, SPACES[space](tables_of(nets), **options), clock)

    if "noise" in draws:
        draws = draws | {"noise": place(params["student"]).space.from_dense(draws["noise"])}

    def objective(own):
        at = place(own)
        listener = Listener((Net, "__call__"), (SPACES[space], "corrupt"), *observer.functions)
        with listener():
            loss_BL, count_BL, _ = loss.evaluate(at, batch, draws)
        total, count = jnp.sum(loss_BL * count_BL), jnp.sum(count_BL)
        return total / count, {
            "out/loss": total / count,
            "out/loss_per_token": loss_BL,
            "out/nll_sum": total,
            "out/num_tokens": count,
        } | observer.read(listener, loss, batch, clock)

    gradient, found = jax.grad(objective, has_aux=True)(params["student"])
    return found, gradient


@contextlib.contextmanager
def jitter(bits: int) -> Iterator[None]:
    """In float64 the factor of the projected noise is computed without its safety margin."""
    before = noise_lib.JITTER
    noise_lib.JITTER = NO_JITTER if bits == 64 else before
    try:
        yield
    finally:
        noise_lib.JITTER = before


def compare(
    case: Case,
    checks: Checks,
    family: networks.Family,
    loss: Loss,
    recorded: Callable[[], tuple[Batch, dict[str, jax.Array]]],
    observer: Observer,
    check: Callable[[str, jax.Array, str], None],
    precisions: tuple[int, ...] = (64, 32),
    make_clock: Callable[[int], clock_lib.Clock] = clock_lib.build,
) -> None:
    """A loss in both spaces and precisions, every value and every gradient.

    In float64 all logits exist at one time, in float32 a chunk of tokens at a time.

    ``recorded`` reads the batch and the raw numbers; ``check`` compares a value, given its
    recorded name, ours, and the name of the space.
    """
    clean_VD = None
    for bits in precisions:
        with checks.precision(bits), jitter(bits):
            clock = make_clock(family.sizes.vocab_size)
            call = functools.partial(
                run, family.params(), *recorded(), clock,
                models=networks.chunked(family.models, bits), loss=loss, observer=observer,
            )  # fmt: skip
            if bits == 64 and family.narrow:
                _, gradient = call(space="projected", share=0.0)
                clean_VD = family.official(gradient)[networks.TABLE]
            for space in space_lib.SPACES:
                found, gradient = call(space=space)
                for name, array in found.items():
                    check(name, array, space)
                gradients(case, checks, gradient, family, space, clean_VD)


def compare_on_tokens(
    case: Case,
    checks: Checks,
    family: networks.Family,
    params: Callable[[], dict[str, Params]],
    loss: Loss,
    recorded: Callable[[], tuple[Batch, dict[str, jax.Array]]],
    methods: tuple[str, ...],
    read: Callable[..., dict[str, jax.Array]],
    check: Callable[[dict[str, jax.Array]], None],
    make_clock: Callable[[], clock_lib.Clock] = clock_lib.identity,
    precisions: tuple[int, ...] = (64, 32),
) -> None:
    """A loss of diffusion on tokens: its values, handed to ``check``, and every gradient.

    ``read`` makes the values on the way of calls of the loss's ``methods`` (`Observer`).
    """
    observer = Observer(tuple((type(loss), name) for name in methods), read)
    for bits in precisions:
        with checks.precision(bits):
            found, gradient = run(
                params(), *recorded(), make_clock(),
                models=networks.chunked(family.models, bits), loss=loss, space="onehot",
                observer=observer,
            )  # fmt: skip
            check(found)
            for name, ours in family.official(gradient).items():
                checks.gradient(name, ours, case[f"grad/{name}"].astype(np.float64))


def gradients(
    case: Case,
    checks: Checks,
    gradient: Params,
    family: networks.Family,
    space: str,
    clean_VD: np.ndarray | None = None,
) -> None:
    """Every gradient by its official name; the table's noise part is seen through P in Projected.

    ``clean_VD`` is the part of the table's gradient that comes through the clean tokens; only
    needed where P is not the identity.
    """
    silent = case.entry.get("params_without_gradient", [])
    for name, ours in family.official(gradient).items():
        if name in silent:
            checks.exact(f"grad/{name} is zero, {space}", np.any(ours), False)
            continue
        expected = case[f"grad/{name}"].astype(np.float64)
        if name == networks.TABLE and space == "projected":
            expected = projected(family.joint_VW, expected, clean_VD)
            if checks.bits == 32 and not family.narrow:
                tolerance = SINGULAR32 * np.max(np.abs(expected))
                checks.close(f"grad/{name} {space}", ours, expected, tolerance)
                continue
        checks.gradient(name, ours, expected, space)


def projected(
    table_VW: np.ndarray, gradient_VD: np.ndarray, clean_VD: np.ndarray | None
) -> np.ndarray:
    """clean + P (gradient - clean), P the projection onto the columns of the table (with eta)."""
    gram = table_VW.T @ table_VW
    eta = noise_lib.JITTER * np.trace(gram) / len(gram)
    clean_VD = np.zeros_like(gradient_VD) if clean_VD is None else clean_VD
    noise = table_VW.T @ (gradient_VD - clean_VD)
    return clean_VD + table_VW @ np.linalg.solve(gram + eta * np.eye(len(gram)), noise)
