"""AsyncLLM: one engine thread that serves any number of asyncio tasks, and threads beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self
from weakref import WeakValueDictionary

from kvfold.plugins.contract.errors import EngineError
from kvfold.runtime.llm.async_reply import AsyncReply
from kvfold.runtime.llm.async_session import AsyncSession
from kvfold.runtime.llm.conversation import Conversation, OnOverflow
from kvfold.runtime.llm.generation import DEFAULT_SERVICE, Completion
from kvfold.runtime.llm.llm import DEFAULT_TARGET, LLM
from kvfold.runtime.loop.commands import CopyTree, Discard
from kvfold.runtime.loop.core import Turn
from kvfold.runtime.loop.snapshot import LoopSnapshot
from kvfold.runtime.loop.ticket import Service, Ticket
from kvfold.runtime.memory.paged_sequence import PagedSequence
from kvfold.runtime.memory.tiers.tier_state import TierStats
from kvfold.runtime.memory.token_tree import TreeWatcher
from kvfold.runtime.memory.tree_copy import TreeCopy
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.scheduler.request import Prompt
from kvfold.runtime.sessions.session_file import SessionFile
from kvfold.runtime.text.tokenizer import Tokenizer

# How often a drain looks whether all have ended.
DRAIN_SECONDS = 0.02
# A tier's queue is written within this on any disk that is well.
FLUSH_SECONDS = 10.0


class AsyncLLM:
    """Generates text for many at once; any task or thread may use it.

    Attributes:
        llm: its face for threads, over the same engine thread: what waits there waits for that thread.

    Example:
        async with AsyncLLM.load("bundles/compact") as llm:
            async for piece in llm.submit(prompt, SamplingParams(max_tokens=64)):
                print(piece.text, end="")
    """

    def __init__(self, llm: LLM) -> None:
        """Give an LLM's engine a thread of its own."""
        self.llm = llm
        self._loop = llm.generator.loop
        self._closing = False
        self._replies: WeakValueDictionary[Ticket, AsyncReply] = WeakValueDictionary()
        self._loop.start(self._deliver)

    @classmethod
    def load(
        cls, bundle: str | Path, config: RuntimeConfig | None = None, target: str = DEFAULT_TARGET
    ) -> AsyncLLM:
        """Open one of a bundle's engines; arguments and errors as for `LLM.load`. Blocks while it loads."""
        return cls(LLM.load(bundle, config, target))

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to tokens and back."""
        return self.llm.generator.tokenizer

    @property
    def max_length(self) -> int:
        """Tokens of prompt and reply at most."""
        return self._loop.max_length

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self._loop.info.vocab_size

    @property
    def page_size(self) -> int:
        """Tokens of a page."""
        return self._loop.info.plan.page_size

    @property
    def failure(self) -> EngineError | None:
        """Why the engine takes no more; None while it is well."""
        return self._loop.failure

    @property
    def tier_stats(self) -> TierStats | None:
        """What the tier below the pages holds and does; None where there is none."""
        return None if self.llm.tier is None else self.llm.tier.stats()

    def snapshot(self) -> LoopSnapshot:
        """How the engine stood a moment ago."""
        return self._loop.snapshot()

    def reusable_tokens(self, prompt: Prompt) -> int:
        """Tokens that a prompt would take from the cache now: an estimate."""
        return self._loop.reusable_tokens(prompt)

    @property
    def page_bytes(self) -> Mapping[str, int]:
        """Bytes of a page of each group."""
        plan = self._loop.info.plan
        return {group.name: group.page_bytes(plan.page_size) for group in plan.groups}

    def watch_tree(self, watcher: TreeWatcher) -> None:
        """Tell what prefixes are cached from now on."""
        self._loop.core.scheduler.memory.tree.prefixes.watcher = watcher

    def copy_tree(self, tenant: str | None) -> asyncio.Future[TreeCopy]:
        """Ask for a copy of the tree, of one tenant or of all; it comes when the step at work ends."""
        event_loop = asyncio.get_running_loop()
        copied: asyncio.Future[TreeCopy] = event_loop.create_future()

        def taken(copy: TreeCopy) -> None:
            with suppress(RuntimeError):  # the event loop was closed, so nobody looks
                event_loop.call_soon_threadsafe(_give, copied, copy)

        self._loop.post(CopyTree(tenant, taken))
        return copied

    def submit(
        self, prompt: Prompt, params: SamplingParams, service: Service = DEFAULT_SERVICE
    ) -> AsyncReply:
        """Begin a reply, whose pieces this task reads; never blocks.

        Raises:
            RequestError: the prompt is empty, too long, or has token ids out of range.
            CapacityError: it needs more pages than the whole pool has.
            EngineError: the engine failed, or is closing.
        """
        return self.submit_several(prompt, [params], service)[0]

    def submit_several(
        self, prompt: Prompt, params: Iterable[SamplingParams], service: Service = DEFAULT_SERVICE
    ) -> list[AsyncReply]:
        """Begin several replies to one prompt, which is computed once; errors as for `submit`."""
        if self._closing:
            raise EngineError("the engine is closing; ask again when it is back")
        said = iter(service.said)
        replies = [self.llm.generator.prepare(prompt, each, service, next(said, ())) for each in params]
        begun = [AsyncReply(reply, self._loop) for reply in replies]
        for reply in begun:
            reply.ticket.after = begun[0].ticket if reply is not begun[0] else None
            self._replies[reply.ticket] = reply
            self._loop.submit(reply.ticket)
        return begun

    def discard(self, kept: PagedSequence) -> None:
        """Give back pages that a reply kept for a next turn that does not come."""
        self._loop.post(Discard(kept))

    async def generate(
        self, prompt: Prompt, params: SamplingParams, service: Service = DEFAULT_SERVICE
    ) -> Completion:
        """A whole reply; errors as for `submit`."""
        return await self.submit(prompt, params, service).completion()

    def session(
        self,
        system: str | None = None,
        on_overflow: OnOverflow = "error",
        file: SessionFile | None = None,
    ) -> AsyncSession:
        """A conversation; arguments and errors as for `LLM.session`."""
        conversation = Conversation(self.tokenizer, self.max_length, system, on_overflow, file)
        return AsyncSession(conversation, self.submit, self._loop.post)

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, wait so long for those that run, then cancel the rest."""
        self._closing = True
        end = self._now() + seconds
        while self._replies_run() and self._now() < end:
            await asyncio.sleep(DRAIN_SECONDS)
        for reply in list(self._replies.values()):
            reply.cancel("drain")
        while self._replies_run():
            await asyncio.sleep(DRAIN_SECONDS)

    async def close(self, flush_seconds: float = FLUSH_SECONDS) -> bool:
        """Cancel what runs, end the engine's thread, then let the tier write what waits, so long at most.

        False where that takes longer: what is not written is computed again.
        """
        await self.drain(0)
        await asyncio.to_thread(self._loop.close)
        return self.llm.tier is None or await asyncio.to_thread(self.llm.tier.close, flush_seconds)

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await self.close()

    def _replies_run(self) -> bool:
        return any(not reply.ticket.ended for reply in list(self._replies.values()))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _deliver(self, turn: Turn) -> None:
        """Wake the readers of what a turn advanced, once for each event loop; on the engine's thread."""
        woken: dict[asyncio.AbstractEventLoop, list[AsyncReply]] = {}
        for ticket in turn.advanced:
            reply = self._replies.get(ticket)
            if reply is not None and reply.wants_news:
                woken.setdefault(reply.event_loop, []).append(reply)
        for event_loop, replies in woken.items():
            try:
                event_loop.call_soon_threadsafe(_wake, replies)
            except RuntimeError:  # the event loop was closed, so nobody reads
                for reply in replies:
                    reply.cancel()


def _give(copied: asyncio.Future[TreeCopy], copy: TreeCopy) -> None:
    if not copied.done():
        copied.set_result(copy)


def _wake(replies: list[AsyncReply]) -> None:
    for reply in replies:
        reply.wake()
