"""BodyBudget: how many bytes of long bodies may be inside at once."""

from __future__ import annotations

from collections.abc import Callable

from kvfold.runtime.server.http import HttpError

MAX_BODIES_BYTES = 64 * 2**20
# Shorter ones are not counted: who sends many long bodies keeps nobody from a chat.
UNCOUNTED_BYTES = 64 * 2**10


class BodyBudget:
    """Bytes of the long bodies of all requests that have not ended.

    Attributes:
        held: bytes now.
    """

    def __init__(self, refused: Callable[[str], None]) -> None:
        """`refused` is told the reason of each refusal."""
        self.held = 0
        self._refused = refused

    def resize(self, old: int, new: int) -> int:
        """Hold a body of `new` bytes, of which `old` are held, 0 of one that is gone; returns those held.

        Raises:
            HttpError: 429 with Retry-After: there is no room for it.
        """
        if new <= UNCOUNTED_BYTES:
            new = 0
        if new > old and self.held + new - old > MAX_BODIES_BYTES:
            self._refused("bodies")
            raise HttpError(
                429,
                f"bodies of {self.held} bytes are inside already, of {MAX_BODIES_BYTES}, and this one has "
                f"{new}; try again in 1 s, or send less",
                code="busy",
                headers={"retry-after": "1"},
            )
        self.held += new - old
        return new
