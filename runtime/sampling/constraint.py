"""Constraint: what a grammar must offer so that a reply is sampled by it."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Constraint(Protocol):
    """A grammar over one reply: one object a reply, used by one thread.

    A KvfoldError that one of its methods raises ends its own reply alone.
    """

    def fill_mask(self, mask: np.ndarray) -> None:
        """Write which tokens may follow.

        Args:
            mask: uint32 [ceil(vocab / 32)]; bit i % 32 of word i // 32 is set where token i is allowed.
        """
        ...

    def accept(self, token_id: int) -> None:
        """Go on past a token that was sampled.

        Raises:
            RequestError: it may not follow; then all is as it was.
        """
        ...

    def rollback(self, count: int) -> None:
        """Take back the last `count` tokens that were accepted."""
        ...

    @property
    def finished(self) -> bool:
        """Whether nothing but an end may follow."""
        ...
