"""What clients ask of the loop: frozen values, put into its inbox by any thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvfold.runtime.loop.ticket import CancelReason, Ticket
from kvfold.runtime.memory.paged_sequence import PagedSequence
from kvfold.runtime.memory.tree_copy import TreeCopy


@dataclass(frozen=True)
class Submit:
    """Run a ticket."""

    ticket: Ticket


@dataclass(frozen=True)
class Cancel:
    """End a ticket before its next token. Of one that has ended, only pages that were not to be kept go.

    Attributes:
        ticket: which.
        reason: why.
        keep: whether what was said counts, so that its pages are kept where the request asked for that.
    """

    ticket: Ticket
    reason: CancelReason = "client"
    keep: bool = False


@dataclass(frozen=True)
class Discard:
    """Give back a sequence that was kept for a next turn."""

    sequence: PagedSequence


@dataclass(frozen=True)
class CopyTree:
    """Copy the tree of cached prefixes as it is between two steps.

    Attributes:
        tenant: whose; None is everybody's.
        taken: given the copy, in the loop's thread.
    """

    tenant: str | None
    taken: Callable[[TreeCopy], None]


@dataclass(frozen=True)
class Close:
    """End the loop's own thread."""


Command = Submit | Cancel | Discard | CopyTree | Close
