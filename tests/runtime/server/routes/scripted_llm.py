"""A model that says what a test wrote down, with AsyncLLM's signatures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any

from kvfold.plugins.contract.errors import KvfoldError
from kvfold.runtime.llm.generation import Completion, TextChunk
from kvfold.runtime.loop.ticket import Service
from kvfold.runtime.memory.tiers.tier_state import TierStats
from kvfold.runtime.memory.tree_copy import TreeCopy
from kvfold.runtime.metrics import Usage
from kvfold.runtime.sampling.logprobs import TokenLogprob
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.scheduler.request import Prompt
from tests.runtime.byte_tokenizer import VOCAB, ByteTokenizer

IDS = count(1)


@dataclass(frozen=True)
class Script:
    """A reply.

    Attributes:
        pieces: of its text, as they come.
        finish: why it ends.
        more: other fields of its completion.
        error: raised after the pieces, instead of the completion.
        waits: it stays silent after its pieces until it is cancelled.
    """

    pieces: Sequence[str] = ("Hello", " wörld", "!")
    finish: Any = "stop"
    more: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None
    waits: bool = False


class ScriptedReply:
    """An AsyncReply over a script; a token is a byte."""

    def __init__(self, llm: ScriptedLLM, prompt: Prompt, params: SamplingParams, service: Service) -> None:
        self.id = next(IDS)
        self.kept: Any = None
        self.told: Sequence[TextChunk] = ()
        self.unread_characters = 0
        self.cancelled: str | None = None
        self._llm, self._prompt, self._params, self._service = llm, prompt, params, service
        self._script = llm.scripts.pop(0) if len(llm.scripts) > 1 else llm.scripts[0]
        self._left = [] if params.max_tokens == 0 else list(self._script.pieces)
        self._said = ""
        self._done = False
        self._woken = asyncio.Event()
        self.submitted = time.monotonic()

    def __aiter__(self) -> ScriptedReply:
        return self

    async def __anext__(self) -> TextChunk:
        await asyncio.sleep(0)
        if self._done:
            raise StopAsyncIteration
        if self._left and self.cancelled is None:
            piece = self._left.pop(0)
            self._said += piece
            ids = tuple(piece.encode())
            return TextChunk(piece, ids, self._logprobs(ids))
        if self._script.waits:
            await self._woken.wait()
        self._done = True
        self._llm.running.discard(self)
        if self._script.error is not None:
            raise self._script.error
        return TextChunk("", (), self._logprobs(()), self._completion())

    def cancel(self, reason: Any = "client", keep: bool = True) -> None:
        self.cancelled = reason
        self._woken.set()

    def _logprobs(self, ids: Sequence[int]) -> tuple[TokenLogprob, ...] | None:
        if self._params.logprobs is None:
            return None
        top = tuple((65 + rank, -1.0 - rank) for rank in range(self._params.logprobs))
        return tuple(TokenLogprob(token, -0.5, top) for token in ids)

    def usage(self) -> Usage:
        asked, said = len(self._prompt.token_ids), len(self._said.encode())
        return Usage(asked, self._llm.reused, asked - self._llm.reused, said, 0, 0.0, 0.1, 9.0)

    def _completion(self) -> Completion:
        ids = list(self._said.encode())
        logprobs = self._logprobs(ids)
        asked = self._prompt.token_ids.tolist()
        scored = self._params.prompt_logprobs
        if self._service.keep:
            self.kept = object()
        values: dict[str, Any] = {
            "text": self._said,
            "token_ids": ids,
            "finish_reason": "cancelled" if self.cancelled else self._script.finish,
            "logprobs": None if logprobs is None else list(logprobs),
            "usage": self.usage(),
            "cancel_reason": self.cancelled,
            "prompt_logprobs": None
            if scored is None
            else [None, *(TokenLogprob(token, -0.25, ((token, -0.25),) * scored) for token in asked[1:])],
        }
        return Completion(**values | self._script.more)


class ScriptedLLM:
    """Replies by its scripts, one after another; the last one again and again.

    Attributes:
        asked: what was submitted.
        discarded: pages that were given back.
    """

    def __init__(self, *scripts: Script, max_length: int = 512, reused: int = 0) -> None:
        self.scripts = list(scripts) or [Script()]
        self.tokenizer = ByteTokenizer()
        self.max_length = max_length
        self.vocab_size = VOCAB
        self.page_size = 16
        self.page_bytes = {"global": 512}
        self.failure: KvfoldError | None = None
        self.tier_stats: TierStats | None = None
        self.reused = reused
        self.asked: list[tuple[Prompt, SamplingParams, Service]] = []
        self.refuses: Exception | None = None
        self.replies: list[ScriptedReply] = []
        self.running: set[ScriptedReply] = set()
        self.discarded: list[Any] = []

    def submit(self, prompt: Prompt, params: SamplingParams, service: Service | None = None) -> ScriptedReply:
        if self.refuses is not None:
            raise self.refuses
        self.asked.append((prompt, params, service or Service()))
        reply = ScriptedReply(self, prompt, params, service or Service())
        self.replies.append(reply)
        self.running.add(reply)
        return reply

    def submit_several(
        self, prompt: Prompt, params: Iterable[SamplingParams], service: Service | None = None
    ) -> list[ScriptedReply]:
        return [self.submit(prompt, each, service) for each in params]

    def reusable_tokens(self, prompt: Prompt) -> int:
        return self.reused

    def discard(self, kept: Any) -> None:
        self.discarded.append(kept)

    def copy_tree(self, tenant: str | None) -> asyncio.Future[TreeCopy]:
        raise AssertionError("it has no tree")

    def snapshot(self) -> Any:
        views = tuple(
            SimpleNamespace(
                id=reply.id,
                tenant=reply._prompt.tenant,
                state="decode",
                prompt_tokens=len(reply._prompt.token_ids),
                reused_tokens=0,
                completion_tokens=len(reply._said.encode()),
                submitted=reply.submitted,
                first_token=None,
            )
            for reply in self.running
        )
        return SimpleNamespace(busy=False, last_step=time.monotonic(), prefill_rate=0.0, requests=views)

    async def drain(self, seconds: float) -> None:
        pass

    async def close(self, flush_seconds: float = 10.0) -> bool:
        return True
