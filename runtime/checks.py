"""Checks of what a user passes in; each failure is a RequestError with the value and what to do."""

from __future__ import annotations

from math import isfinite

from kvfold.plugins.contract.errors import RequestError


def check_number(name: str, value: object, low: float, high: float | None = None) -> None:
    """Refuse anything but a finite number in [low, high]."""
    fits = (
        isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value) and value >= low
    )
    if not fits or (high is not None and isinstance(value, (int, float)) and value > high):
        bounds = f"of at least {low:g}" if high is None else f"from {low:g} to {high:g}"
        raise RequestError(f"{name} is {value!r}; use a number {bounds}")


def check_integer(name: str, value: object, low: int) -> None:
    """Refuse anything but an integer of at least `low`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise RequestError(f"{name} is {value!r}; use an integer of at least {low}")
