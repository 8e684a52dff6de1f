"""Progress: how a long computation says how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Takes how far a piece of work is."""

    def __call__(self, fraction: float, note: str = "") -> None:
        """The fraction 0..1 done, and what the work has to say at present, such as a loss."""
        ...


def unheard(fraction: float, note: str = "") -> None:
    """For work that nobody waits for."""


def part(progress: Progress, start: float, size: float, doing: str = "") -> Progress:
    """Takes the fraction of a part that begins at `start` of the whole and is `size` of it.

    Where the part says nothing itself, `doing` is said.
    """

    def tell(fraction: float, note: str = "") -> None:
        progress(start + fraction * size, note or doing)

    return tell
