"""An AsyncLLM whose replies say what a test tells them to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from kvfold.runtime.metrics import CacheMetrics, Metrics, PoolUsage
from tests.runtime.byte_tokenizer import ByteTokenizer

POOLS = {"global": PoolUsage(100, 60, 10), "window": PoolUsage(10, 1, 3)}


@dataclass(frozen=True)
class Chunk:
    """A TextChunk."""

    text: str
    token_ids: tuple[int, ...]
    completion: Any = None
    logprobs: Any = None


@dataclass(frozen=True)
class Snapshot:
    """A LoopSnapshot."""

    last_step: float = 0.0
    busy: bool = False
    waiting: int = 0
    running: int = 0
    prefill_tokens_per_second: float = 0.0
    metrics: Metrics = field(default_factory=lambda: Metrics(CacheMetrics(10, 4, 2), POOLS, 5))


class PuppetReply:
    """Says the given texts, a token each; `go` lets it."""

    def __init__(self, number: int, prompt: Any, texts: Sequence[str], go: asyncio.Event) -> None:
        self.id = number
        self.cancelled: str | None = None
        self.buffered_bytes = 0
        self.kept: Any = None
        self.failure: Exception | None = None
        self.done = False
        self._prompt = prompt
        self._texts = list(texts)
        self._said = 0
        self._go = go

    async def __anext__(self) -> Chunk:
        await self._go.wait()
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        if self.done:
            raise StopAsyncIteration
        self._said += 1
        self.done = self._said == len(self._texts)
        completion = self._completion() if self.done else None
        return Chunk(self._texts[self._said - 1], (self._said,), completion)

    def _completion(self) -> Any:
        usage = SimpleNamespace(
            prompt_tokens=len(self._prompt.token_ids),
            reused_tokens=1,
            completion_tokens=self._said,
            queued_seconds=0.25,
        )
        return SimpleNamespace(
            text="".join(self._texts), finish_reason="stop", cancel_reason=None, usage=usage
        )

    def cancel(self, reason: str = "client") -> None:
        self.cancelled = reason


class PuppetLLM:
    """Keeps what was asked for."""

    def __init__(self, texts: Sequence[str] = ("a", "b", "c")) -> None:
        self.tokenizer = ByteTokenizer()
        self.max_length = 512
        self.page_size = 16
        self.failure: Exception | None = None
        self.refuses: Exception | None = None
        self.state = Snapshot(last_step=time.monotonic())
        self.replies: list[PuppetReply] = []
        self.go = asyncio.Event()
        self.go.set()
        self.drained: float | None = None
        self.closed = False
        self._texts = texts

    def submit(self, prompt: Any, params: Any, service: Any = None) -> PuppetReply:
        if self.refuses is not None:
            raise self.refuses
        self.replies.append(PuppetReply(len(self.replies), prompt, self._texts, self.go))
        return self.replies[-1]

    def discard(self, kept: Any) -> None:
        pass

    def snapshot(self) -> Snapshot:
        return self.state

    def see(self, **changes: Any) -> None:
        """The loop's next snapshot differs in this."""
        self.state = replace(self.state, **changes)

    async def drain(self, seconds: float) -> None:
        self.drained = seconds

    async def close(self) -> None:
        self.closed = True
