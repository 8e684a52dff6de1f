"""AsyncSession: a conversation of an asyncio task; what a turn costs and keeps is as for `Session`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Self

from kvfold.runtime.llm.async_reply import AsyncReply
from kvfold.runtime.llm.conversation import Conversation
from kvfold.runtime.llm.generation import Completion, TextChunk
from kvfold.runtime.llm.session import KEEP
from kvfold.runtime.loop.commands import Command, Discard
from kvfold.runtime.loop.ticket import Service
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.scheduler.request import Prompt

if TYPE_CHECKING:
    from kvfold.plugins.contract.chat_template import Message
    from kvfold.runtime.memory.paged_sequence import PagedSequence

Submit = Callable[[Prompt, SamplingParams, Service], AsyncReply]


class AsyncSession:
    """One conversation, of one task at a time; `AsyncLLM.session` opens it.

    Example:
        async with llm.session(system="Answer briefly.") as session:
            print((await session.send("What is a KV cache?")).text)
    """

    def __init__(self, conversation: Conversation, submit: Submit, post: Callable[[Command], None]) -> None:
        """Over a conversation; `submit` begins a reply, `post` asks the engine's owner."""
        self._conversation = conversation
        self._submit = submit
        self._post = post

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation so far, in the chat format."""
        return self._conversation.messages

    @property
    def unsaved(self) -> str | None:
        """As for `Session`."""
        return self._conversation.unsaved

    async def send(self, text: str, params: SamplingParams | None = None) -> Completion:
        """Say something and wait for the reply; errors as for `Session.send`."""
        async for chunk in self.stream(text, params):
            if chunk.completion is not None:
                return chunk.completion
        raise AssertionError("a stream ends with its completion")

    async def stream(
        self, text: str, params: SamplingParams | None = None
    ) -> AsyncGenerator[TextChunk, None]:
        """Say something and get the reply piece by piece; closing the iterator undoes the turn.

        Raises:
            RequestError: as for `Session.stream`.
            EngineError: the engine failed, or is closing.
        """
        conversation = self._conversation
        turn = await asyncio.to_thread(conversation.open, text, params or SamplingParams())
        conversation.start(turn)
        left: PagedSequence | None = None
        try:
            reply = self._submit(turn.prompt, turn.params, KEEP)
            conversation.note_dropped(turn)
            async for chunk in reply:
                if chunk.completion is not None:
                    conversation.finish(turn, chunk.completion, reply.ticket.request)
                    left = reply.ticket.request.sequence
                    await asyncio.to_thread(conversation.save)
                yield chunk
        finally:
            conversation.leave(turn)
            if left is not conversation.kept or conversation.closed:
                self._discard(left)  # it ended, and its turn is undone

    def close(self) -> None:
        """Give back the kept pages and its file; what is in the radix tree stays cached."""
        self._discard(self._conversation.close())

    async def __aenter__(self) -> Self:
        """The session itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _discard(self, sequence: PagedSequence | None) -> None:
        if sequence is not None:
            self._post(Discard(sequence))
