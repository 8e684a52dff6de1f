"""What the server needs of an AsyncLLM; a test puts a scripted one in its place."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from kvfold.plugins.contract.errors import KvfoldError
from kvfold.runtime.llm.generation import TextChunk
from kvfold.runtime.loop.snapshot import LoopSnapshot
from kvfold.runtime.loop.ticket import CancelReason, Service
from kvfold.runtime.memory.tiers.tier_state import TierStats
from kvfold.runtime.memory.tree_copy import TreeCopy
from kvfold.runtime.metrics import Usage
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.scheduler.request import Prompt
from kvfold.runtime.text.tokenizer import Tokenizer


class ServedReply(Protocol):
    """A reply that comes in pieces; see AsyncReply."""

    @property
    def id(self) -> int:
        """Of the request in the loop."""
        ...

    @property
    def unread_characters(self) -> int:
        """Characters of text that nobody took yet."""
        ...

    @property
    def told(self) -> Sequence[TextChunk]:
        """Its pieces that were read before it began here."""
        ...

    @property
    def kept(self) -> Any:
        """Of a reply that has ended: the pages for its conversation's next turn."""
        ...

    def usage(self) -> Usage:
        """What it cost so far."""
        ...

    async def __anext__(self) -> TextChunk:
        """The next piece; the last one has a completion."""
        ...

    def cancel(self, reason: CancelReason = "client", keep: bool = True) -> None:
        """End it within a step; `keep`: what was said counts."""
        ...


class ServedLLM(Protocol):
    """A loaded model; see AsyncLLM."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to tokens and back."""
        ...

    @property
    def max_length(self) -> int:
        """Tokens of prompt and reply at most."""
        ...

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        ...

    @property
    def page_size(self) -> int:
        """Tokens of a page."""
        ...

    @property
    def page_bytes(self) -> Mapping[str, int]:
        """Bytes of a page of each group."""
        ...

    @property
    def failure(self) -> KvfoldError | None:
        """Why the engine died."""
        ...

    @property
    def tier_stats(self) -> TierStats | None:
        """What the tier below the pages holds and does; None where there is none."""
        ...

    def submit_several(
        self, prompt: Prompt, params: Iterable[SamplingParams], service: Service = ...
    ) -> Sequence[ServedReply]:
        """Ask for replies to one prompt, which is computed once; never blocks."""
        ...

    def reusable_tokens(self, prompt: Prompt) -> int:
        """Tokens that a prompt would take from the cache now: an estimate."""
        ...

    def discard(self, kept: Any) -> None:
        """Give back pages that a reply kept; never blocks."""
        ...

    def snapshot(self) -> LoopSnapshot:
        """How the engine stood a moment ago; costs nothing."""
        ...

    def copy_tree(self, tenant: str | None) -> asyncio.Future[TreeCopy]:
        """Ask for a copy of the tree, of one tenant or of all; an engine that hangs never gives it."""
        ...

    async def drain(self, seconds: float) -> None:
        """Take no more, wait for what runs, then cancel the rest."""
        ...

    async def close(self, flush_seconds: float = ...) -> bool:
        """End the engine's thread; then the tier writes what waits. False where so long is not enough."""
        ...


class PendingReply(Protocol):
    """What a request waits for, as `ServerState.submit` gives it."""

    @property
    def prompt(self) -> Any:
        """What it replies to."""
        ...

    @property
    def completion(self) -> Any:
        """The Completion of a finished reply."""
        ...

    @property
    def tokens(self) -> int:
        """Generated so far, as far as they were read."""
        ...

    @property
    def unread_characters(self) -> int:
        """Characters of text that nobody took yet."""
        ...

    def cancel(self) -> None:
        """End it; nothing where it has ended."""
        ...
