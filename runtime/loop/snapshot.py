"""What the loop's owner tells everybody else: immutable, made between turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvfold.runtime.loop.ticket import Ticket
from kvfold.runtime.metrics import Metrics, PrefixMatch

RequestState = Literal["queued", "prefill", "decode"]


@dataclass(frozen=True)
class RequestView:
    """One request that has not ended.

    Attributes:
        id: of its ticket.
        tenant: whose it is.
        state: it waits, its prompt is computed, or its reply.
        prompt_tokens: of its prompt.
        reused_tokens: of these, from the cache; 0 while it waits.
        completion_tokens: of its reply so far.
        submitted: clock of its submission, as of `time.monotonic`.
        first_token: clock of its first token; None before.
        match: what the cache had of its prompt; None while it waits.
    """

    id: int
    tenant: str
    state: RequestState
    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int
    submitted: float
    first_token: float | None
    match: PrefixMatch | None = None

    @classmethod
    def of(cls, ticket: Ticket) -> RequestView:
        """How a ticket stands between two turns."""
        request = ticket.request
        state: RequestState = "decode" if request.num_completion_tokens else "prefill"
        if request.sequence is None:
            state = "queued"
        return cls(
            id=ticket.id,
            tenant=request.prefix.tenant,
            state=state,
            prompt_tokens=request.prompt_length,
            reused_tokens=request.reused_tokens or 0,
            completion_tokens=request.num_completion_tokens,
            submitted=ticket.submitted,
            first_token=ticket.first_token,
            match=request.match,
        )


@dataclass(frozen=True)
class LoopSnapshot:
    """How the loop stands.

    Attributes:
        steps: run so far.
        last_step: clock of the end of the last step, or of the moment work came to an idle loop.
        busy: whether it has work; then a `last_step` long ago means that the engine hangs.
        waiting: requests that have no pages yet.
        running: requests that have.
        waiting_tokens: prompt tokens of those that wait.
        prefill_rate: prompt tokens a second, as measured lately; 0 is unknown.
        decode_rate: tokens of replies a second, of all requests together, as measured lately; 0 is unknown.
        metrics: counters and pages.
        requests: all that have not ended.
    """

    steps: int
    last_step: float
    busy: bool
    waiting: int
    running: int
    waiting_tokens: int
    prefill_rate: float
    decode_rate: float
    metrics: Metrics
    requests: tuple[RequestView, ...]
