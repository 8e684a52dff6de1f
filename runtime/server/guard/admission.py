"""Admission: how much may wait for the engine, and when a client that was refused may come again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from kvfold.runtime.server.guard.admission_limits import AdmissionLimits
from kvfold.runtime.server.http import HttpError

MAX_RETRY_SECONDS = 60


class Admitted:
    """A reply that was let in.

    Attributes:
        tokens: of its prompt that must be computed; 0 from its first token on.
    """

    def __init__(self, admission: Admission, tokens: int) -> None:
        """Counted from now on."""
        self.tokens = tokens
        self._admission = admission
        self._since = time.monotonic()

    def started(self) -> None:
        """The first token is out."""
        self._admission.waiting_tokens -= self.tokens
        self.tokens = 0

    def ended(self) -> None:
        """No more tokens come."""
        self.started()
        self._admission.ended(time.monotonic() - self._since)


class Admission:
    """Counts replies from submission to end, so that a burst between two steps of the engine counts too.

    Attributes:
        limits: what may be inside.
        inside: replies that were let in and have not ended.
        waiting_tokens: prompt tokens to compute of those without a first token.
    """

    def __init__(self, limits: AdmissionLimits, refused: Callable[[str], None]) -> None:
        """`refused` is told the reason of each refusal."""
        self.inside = 0
        self.waiting_tokens = 0
        self.limits = limits
        self._refused = refused
        self._mean_seconds = 1.0

    @property
    def waiting(self) -> int:
        """Replies beyond those that the engine computes at once."""
        return max(0, self.inside - self.limits.max_running)

    def check(self, replies: int, own: int, tokens: int, prefill_rate: float) -> None:
        """Refuse what would wait too long.

        Args:
            replies: to one prompt, that are to be let in.
            own: replies to other prompts of the same request, that are inside already.
            tokens: of the prompt that no cache has.
            prefill_rate: tokens a second, measured; 0 where nothing was yet.

        Raises:
            HttpError: 429 with Retry-After; 400 where one request asks for more than may ever be inside.
        """
        limits = self.limits
        most = limits.max_running + limits.max_waiting
        if own + replies > most:
            raise HttpError(
                400, f"asks for more than {most} replies, as many as may run and wait here; ask for fewer"
            )
        if self.inside + replies > most:
            self._refuse(
                "requests", f"{self.waiting} replies wait already, of {limits.max_waiting}", prefill_rate
            )
        if own:  # what its first prompt waits for, the others wait for with it
            return
        ahead = self.waiting_tokens
        # A prompt that is long by itself is served when its turn comes; only a queue is too long.
        if ahead and prefill_rate and (ahead + tokens) / prefill_rate > limits.max_waiting_seconds:
            self._refuse(
                "tokens",
                f"{ahead} prompt tokens wait already, and {tokens} more would be "
                f"{(ahead + tokens) / prefill_rate:.0f} s of work, of {limits.max_waiting_seconds:g} s",
                prefill_rate,
            )

    def wait_seconds(self, prefill_rate: float) -> float:
        """Until all that waits has begun: by Little's law replies end every mean/inside seconds."""
        replies = self.waiting * self._mean_seconds / max(1, self.inside)
        prompts = self.waiting_tokens / prefill_rate if prefill_rate else 0.0
        return max(replies, prompts)

    def admit(self, tokens: int) -> Admitted:
        """Count a reply."""
        self.inside += 1
        self.waiting_tokens += tokens
        return Admitted(self, tokens)

    def ended(self, seconds: float) -> None:
        """A reply ended after so many seconds."""
        self.inside -= 1
        self._mean_seconds += (seconds - self._mean_seconds) / 8

    def _refuse(self, reason: str, text: str, prefill_rate: float) -> None:
        self._refused(reason)
        seconds = self._until_half_is_gone(prefill_rate)
        raise HttpError(
            429,
            f"the server is busy: {text}; try again in {seconds} s",
            code="busy",
            headers={"retry-after": str(seconds)},
        )

    def _until_half_is_gone(self, prefill_rate: float) -> int:
        return min(MAX_RETRY_SECONDS, max(1, math.ceil(self.wait_seconds(prefill_rate) / 2)))
