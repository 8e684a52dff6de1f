"""An AsyncLLM whose replies say what a test tells them to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from kvfold.plugins.contract.errors import KvfoldError
from kvfold.runtime.llm.generation import Completion, TextChunk
from kvfold.runtime.loop.snapshot import LoopSnapshot
from kvfold.runtime.loop.ticket import CancelReason, Service
from kvfold.runtime.memory.tiers.tier_state import TierState, TierStats
from kvfold.runtime.memory.tree_copy import TreeCopy
from kvfold.runtime.metrics import CacheMetrics, Metrics, PoolUsage, Usage
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.scheduler.request import Prompt
from tests.runtime.byte_tokenizer import ByteTokenizer

SERVICE = Service()
POOLS = {"global": PoolUsage(4, 10, 30), "window": PoolUsage(6, 3, 6)}

TIER = TierStats(
    TierState(reading=True, writing=False, reason="cannot write: No space left on device"),
    objects=3,
    bytes=4096,
    queued_bytes=512,
    ignored=1,
    written=9,
    written_bytes=8192,
    dropped=2,
    loaded=4,
    loaded_bytes=1024,
    missing=1,
    damaged=5,
    evicted=6,
    errors=7,
)
IDLE = LoopSnapshot(
    steps=3,
    last_step=0.0,
    busy=False,
    waiting=0,
    running=0,
    waiting_tokens=0,
    prefill_rate=0.0,
    decode_rate=0.0,
    metrics=Metrics(
        CacheMetrics(queried_tokens=10, hit_tokens=4, loaded_tokens=3, too_short_tokens=2), POOLS, 400, 5
    ),
    requests=(),
)


class PuppetReply:
    """Says the given texts, a token each; `go` lets it."""

    def __init__(self, number: int, prompt: Prompt, texts: Sequence[str], go: asyncio.Event) -> None:
        self.id = number
        self.kept: Any = None
        self.told: Sequence[TextChunk] = ()
        self.cancelled: CancelReason | None = None
        self.unread_characters = 0
        self.failure: Exception | None = None
        self.done = False
        self._prompt = prompt
        self._texts = list(texts)
        self._said = 0
        self._go = go

    async def __anext__(self) -> TextChunk:
        await self._go.wait()
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        if self.done:
            raise StopAsyncIteration
        self._said += 1
        self.done = self._said == len(self._texts)
        completion = self._completion() if self.done else None
        return TextChunk(self._texts[self._said - 1], (self._said,), completion=completion)

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=len(self._prompt.token_ids),
            reused_tokens=1,
            prefilled_tokens=len(self._prompt.token_ids) - 1,
            completion_tokens=self._said,
            recomputed_tokens=0,
            queued_seconds=0.25,
            time_to_first_token=None,
            tokens_per_second=None,
        )

    def _completion(self) -> Completion:
        ids = list(range(self._said))
        if self.cancelled is not None:
            return Completion("", ids, "cancelled", None, self.usage(), cancel_reason=self.cancelled)
        return Completion("".join(self._texts), ids, "stop", None, self.usage())

    def cancel(self, reason: CancelReason = "client", keep: bool = True) -> None:
        self.cancelled = reason


class PuppetLLM:
    """Keeps what was asked for."""

    def __init__(self, texts: Sequence[str] = ("a", "b", "c")) -> None:
        self.tokenizer = ByteTokenizer()
        self.max_length = 512
        self.page_size = 16
        self.vocab_size = 258
        self.page_bytes = {"global": 512, "window": 256}
        self.failure: KvfoldError | None = None
        self.refuses: Exception | None = None
        self.state = replace(IDLE, last_step=time.monotonic())
        self.replies: list[PuppetReply] = []
        self.go = asyncio.Event()
        self.go.set()
        self.cached = 0
        self.drained: float | None = None
        self.closed = False
        self.tier_stats: TierStats | None = TIER
        self._texts = texts

    def submit_several(
        self, prompt: Prompt, params: Iterable[SamplingParams], service: Service = SERVICE
    ) -> list[PuppetReply]:
        if self.refuses is not None:
            raise self.refuses
        begun = [self.reply(len(self.replies) + at, prompt) for at, _ in enumerate(params)]
        self.replies += begun
        return begun

    def reply(self, number: int, prompt: Prompt) -> PuppetReply:
        return PuppetReply(number, prompt, self._texts, self.go)

    def reusable_tokens(self, prompt: Prompt) -> int:
        return self.cached

    def discard(self, kept: Any) -> None:
        raise AssertionError("nothing was kept")

    def copy_tree(self, tenant: str | None) -> asyncio.Future[TreeCopy]:
        raise AssertionError("it has no tree")

    def snapshot(self) -> LoopSnapshot:
        return self.state

    def see(self, **changes: Any) -> None:
        """The loop's next snapshot differs in this."""
        self.state = replace(self.state, **changes)

    async def drain(self, seconds: float) -> None:
        self.drained = seconds

    async def close(self, flush_seconds: float = 10.0) -> bool:
        self.closed = True
        return True
