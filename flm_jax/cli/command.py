"""What a command is."""

import dataclasses
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Command(Generic[T]):
    """One command of `flm`.

    Attributes:
      about: the docstring of its module: one line, examples (lines with "    flm "), remarks;
        None where Python drops docstrings (-OO).
      options: a frozen dataclass of knobs; see `flm_jax.cli.options`.
      run: does the work; returns the exit code, None is 0. Heavy imports are inside.
      needs_reader: see `flm_jax.cli.exits`; False for work that is in files.
    """

    about: str | None
    options: type[T]
    run: Callable[[T], int | None]
    needs_reader: bool = True
