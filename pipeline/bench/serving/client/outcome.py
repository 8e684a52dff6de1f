"""What became of one request, and of many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Ending = Literal["complete", "refused", "broken", "aborted"]


@dataclass(frozen=True)
class Outcome:
    """What became of one request; every time is seconds of `time.perf_counter`.

    Attributes:
        due: when it was to be sent. Latencies count from here, so that a client that is late hides nothing.
        ended: when its last byte came, or the client hung up.
        ending: `complete`, with a reason to end and, in a stream, its last event; `refused` with a status
            other than 200; `broken`: whatever else went wrong; `aborted` by this client.
        status: of HTTP; 0 where no answer came.
        trouble: what a refusal said, or what broke.
        retry_after: seconds that a refusal asked to wait; None where it did not say.
        arrivals: of each piece of text; of a reply that was not streamed its end alone.
        text: of the reply.
        finish_reason: as the server put it.
        prompt_tokens: by the server's own count, as are the next two.
        cached_tokens: of the prompt, those that were not computed again.
        completion_tokens: of the reply.
    """

    due: float
    ended: float
    ending: Ending
    status: int = 0
    trouble: str = ""
    retry_after: float | None = None
    arrivals: tuple[float, ...] = ()
    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    @property
    def first_token(self) -> float | None:
        """Seconds until the first text; None where none came."""
        return self.arrivals[0] - self.due if self.arrivals else None

    @property
    def gaps(self) -> tuple[float, ...]:
        """Seconds between pieces of text."""
        return tuple(b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False))

    @property
    def token_time(self) -> float | None:
        """Seconds a token after the first, however many came in a piece; None for fewer than two."""
        if self.completion_tokens < 2 or not self.arrivals:
            return None
        return (self.arrivals[-1] - self.arrivals[0]) / (self.completion_tokens - 1)

    @property
    def seconds(self) -> float:
        """From when it was due to its end."""
        return self.ended - self.due


@dataclass(frozen=True)
class Load:
    """Requests that were sent together.

    Attributes:
        started: seconds of `time.perf_counter`.
        ended: of the last of them.
        outcomes: in the order they ended.
    """

    started: float
    ended: float
    outcomes: tuple[Outcome, ...]

    @property
    def seconds(self) -> float:
        """From start to end."""
        return self.ended - self.started

    def of(self, ending: Ending) -> tuple[Outcome, ...]:
        """The requests that ended like this."""
        return tuple(outcome for outcome in self.outcomes if outcome.ending == ending)

    @property
    def completion_tokens(self) -> int:
        """Of all whole replies."""
        return sum(outcome.completion_tokens for outcome in self.of("complete"))

    @property
    def requests_per_second(self) -> float:
        """Whole replies."""
        return len(self.of("complete")) / self.seconds

    @property
    def tokens_per_second(self) -> float:
        """Of whole replies."""
        return self.completion_tokens / self.seconds
