"""Checks of a loss's options: one sentence if a value is wrong."""

from flm_jax.errors import UserError


def one_of(name: str, value: str, *choices: str) -> None:
    """UserError unless the option has one of these values."""
    if value not in choices:
        raise UserError(f"{name}={value!r} is unknown; choose {' or '.join(map(repr, choices))}")


def share(name: str, value: float) -> None:
    """UserError unless the option is a share of something, 0 to 1."""
    if not 0.0 <= value <= 1.0:
        raise UserError(f"{name}={value} must be in [0, 1]")


def at_least_one(**counts: int) -> None:
    """UserError unless every option is a positive count."""
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1")


def tau_range(tau_min: float, tau_max: float) -> None:
    """UserError unless these are the ends of a range of times."""
    if not 0.0 <= tau_min < tau_max <= 1.0:
        raise UserError(f"tau_min={tau_min}, tau_max={tau_max}: need 0 <= tau_min < tau_max <= 1")
