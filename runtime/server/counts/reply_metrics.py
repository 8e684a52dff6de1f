"""What replies cost, as the HTTP side sees it: counted on the loop of asyncio."""

from __future__ import annotations

from collections import Counter
from typing import Any

from kvfold.runtime.server.counts.histogram import (
    FIRST_TOKEN_SECONDS,
    GRAMMAR_SECONDS,
    REQUEST_SECONDS,
    TOKEN_SECONDS,
    Histogram,
)
from kvfold.runtime.server.counts.recent_replies import RecentReplies


class ReplyMetrics:
    """Since the server's start.

    Attributes:
        first_token: seconds from the first byte of a request to the first token of a reply.
        between_tokens: seconds from a token to the next.
        whole: seconds from the first byte of a request to the end of a reply.
        queued: seconds from submission to the first step.
        grammar_compile: seconds to compile a grammar, a bad one too.
        ends: finished replies by reason: `stop`, `length`, `cancelled`, `error`.
        cancelled: of these, by who cancelled: `client`, `deadline`, `drain`, `error`.
        refusals: requests that were not let in, by reason.
        files: of sessions and stored responses, by what happened to them: `saved`, `failed` to be, `read`, of
            these `cut`, `refused` as another version's or user's.
        prompt_tokens: of replies that began.
        reply_tokens: generated.
        recent: the replies that ended last.
    """

    def __init__(self) -> None:
        """All zero; every reason is there from the start, so that its rate is known."""
        self.first_token = Histogram(FIRST_TOKEN_SECONDS)
        self.between_tokens = Histogram(TOKEN_SECONDS)
        self.whole = Histogram(REQUEST_SECONDS)
        self.queued = Histogram(REQUEST_SECONDS)
        self.grammar_compile = Histogram(GRAMMAR_SECONDS)
        self.ends = Counter({"stop": 0, "length": 0, "cancelled": 0, "error": 0})
        self.cancelled = Counter({"client": 0, "deadline": 0, "drain": 0, "error": 0})
        self.refusals = Counter({"requests": 0, "tokens": 0, "draining": 0, "dead": 0, "key": 0})
        self.files = Counter({"saved": 0, "failed": 0, "read": 0, "cut": 0, "refused": 0})
        self.prompt_tokens = 0
        self.reply_tokens = 0
        self.recent = RecentReplies()

    def began(self, seconds: float, prompt_tokens: int) -> None:
        """A reply's first token came, so long after the request's first byte."""
        self.first_token.observe(seconds)
        self.prompt_tokens += prompt_tokens

    def gap(self, seconds: float, tokens: int) -> None:
        """So many tokens came together, so long after the one before them."""
        self.between_tokens.observe(seconds / tokens, tokens)

    def ended(self, seconds: float, completion: Any) -> None:
        """A reply ended with a Completion, so long after the request's first byte."""
        self.whole.observe(seconds)
        self.queued.observe(completion.usage.queued_seconds)
        self.ends[completion.finish_reason] += 1
        if completion.finish_reason == "cancelled":
            self.cancelled[completion.cancel_reason or "client"] += 1

    def left(self) -> None:
        """A reply was cancelled, and nobody waits for its end."""
        self.ends["cancelled"] += 1
        self.cancelled["client"] += 1

    def failed(self) -> None:
        """A reply ended with an error."""
        self.ends["error"] += 1
        self.cancelled["error"] += 1

    def refused(self, reason: str) -> None:
        """A request was not let in."""
        self.refusals[reason] += 1
