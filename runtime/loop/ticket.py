"""Ticket: a request on its way through the loop, with its sampling, its clocks and who takes its tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from secrets import randbits
from time import monotonic
from typing import Literal, Protocol

import numpy as np

from kvfold.runtime.metrics import Usage
from kvfold.runtime.sampling.constraint import Constraint
from kvfold.runtime.sampling.logprobs import TokenLogprob
from kvfold.runtime.sampling.sampling_state import SamplingState
from kvfold.runtime.scheduler.request import Request

CancelReason = Literal["client", "deadline", "drain", "error"]
# Takes logits of prompt positions as they come: the first position, float32 [rows, vocab] to read at once.
LogitsSink = Callable[[int, np.ndarray], None]
# Tokens of a reply, in the pieces in which they were told.
Said = tuple[tuple[int, ...], ...]


class Receiver(Protocol):
    """Takes a reply's tokens as they come, on the loop's thread."""

    def push(self, token_id: int, logprob: TokenLogprob | None, ends: bool) -> bool:
        """Take a token, `ends` where it is an end token; True when a stop text is complete with it."""
        ...

    def end(self) -> None:
        """No more comes: the ticket says why."""
        ...


class Unread:
    """Takes tokens that the request keeps anyway, where nobody wants their text."""

    def push(self, token_id: int, logprob: TokenLogprob | None, ends: bool) -> bool:
        """Go on."""
        return False

    def end(self) -> None:
        """Nothing to do."""


@dataclass(frozen=True)
class Service:
    """How a request is served, apart from its tokens.

    Attributes:
        priority: lower goes first.
        deadline: seconds from its submission after which it ends as cancelled; None is none.
        keep: keep the pages after the end, for the conversation's next turn.
        constraint: makes a reply's own grammar; None: anything may be said.
        kept_tokens: special tokens whose text stays in the reply's, as they mark parts of it.
        said: what each of the replies has said already, on another engine of the same model; it goes on from
            there, exactly, and does not tell it again.
    """

    priority: int = 0
    deadline: float | None = None
    keep: bool = False
    constraint: Callable[[], Constraint] | None = None
    kept_tokens: frozenset[int] = frozenset()
    said: tuple[Said, ...] = ()


class Ticket:
    """One request in the loop's hands.

    Attributes:
        id: random: who is told one learns nothing of how many others there are.
        request: its tokens and pages.
        state: how it is sampled, and what that has to remember; None for a prompt that is only read.
        receiver: takes its tokens.
        prompt_logprobs: of the prompt's tokens but the first, where they were asked for, as far as they are.
        logits_sink: takes the logits of the prompt's positions instead; None: nobody wants them.
        after: wait for that one's first token, as both have the same prompt; None: do not wait.
        deadline: clock at which it is cancelled.
        cancel_reason: why it was cancelled.
        error: what ended it, where that was an error.
    """

    def __init__(
        self,
        request: Request,
        state: SamplingState | None,
        receiver: Receiver | None = None,
        *,
        deadline: float | None = None,
        logits_sink: LogitsSink | None = None,
    ) -> None:
        """A ticket that was not submitted yet; `deadline` in seconds from its submission."""
        self.id = randbits(63)
        self.request = request
        self.state = state
        self.receiver = receiver or Unread()
        self.logits_sink = logits_sink
        self.prompt_logprobs: list[TokenLogprob] = []
        self.after: Ticket | None = None
        self.deadline: float | None = None
        self.cancel_reason: CancelReason | None = None
        self.error: Exception | None = None
        self._seconds = deadline
        self._submitted = self._last_token = monotonic()
        self._admitted: float | None = None
        self._first_token: float | None = None

    @property
    def ended(self) -> bool:
        """Whether no more tokens come."""
        return self.request.finish_reason is not None

    @property
    def submitted(self) -> float:
        """Clock of the submission, as of `time.monotonic`."""
        return self._submitted

    @property
    def first_token(self) -> float | None:
        """Clock of the first token."""
        return self._first_token

    def start_clock(self) -> None:
        """It was submitted."""
        self._submitted = self._last_token = monotonic()
        if self._seconds is not None:
            self.deadline = self._submitted + self._seconds

    def note_admission(self, clock: float) -> None:
        """It is part of a step that begins now."""
        if self._admitted is None:
            self._admitted = clock

    def note_token(self, clock: float) -> None:
        """It got a token."""
        self._last_token = clock
        if self._first_token is None:
            self._first_token = clock

    def usage(self) -> Usage:
        """What the request cost so far."""
        request = self.request
        tokens = request.num_completion_tokens
        first = None if self._first_token is None else self._first_token - self._submitted
        elapsed = 0.0 if self._first_token is None else self._last_token - self._first_token
        return Usage(
            prompt_tokens=request.prompt_length,
            # A reply that began elsewhere may find some of itself, too.
            reused_tokens=min(request.reused_tokens or 0, request.prompt_length),
            prefilled_tokens=request.prefilled_tokens,
            completion_tokens=tokens,
            recomputed_tokens=request.recomputed_tokens,
            queued_seconds=(self._last_token if self._admitted is None else self._admitted) - self._submitted,
            time_to_first_token=first,
            tokens_per_second=(tokens - 1) / elapsed if elapsed > 0 else None,
            match=request.match,
        )
