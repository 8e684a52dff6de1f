"""From replies as they grow to events of a stream, or to whole replies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Protocol

from kvfold.runtime.llm.generation import Completion, TextChunk
from kvfold.runtime.metrics import Usage
from kvfold.runtime.sampling.logprobs import TokenLogprob
from kvfold.runtime.server.relayed import Note, Relayed
from kvfold.runtime.server.tracked_reply import TrackedReply
from kvfold.runtime.server.wire.reply_parts import PlainReader, ReplyReader, check_not_cancelled
from kvfold.runtime.structured.reply_events import ReplyEvent

Ended = Callable[[int, Completion], None]


class Events(Protocol):
    """An API's events; each method gives whole events, joined, or nothing."""

    def begin(self) -> bytes:
        """Before the first token."""
        ...

    def text(self, at: int, text: str) -> bytes:
        """More text of reply number `at`, where no reader and no log probabilities are asked for."""
        ...

    def parts(self, at: int, parts: Sequence[ReplyEvent], logprobs: Sequence[TokenLogprob] | None) -> bytes:
        """More of a reply, and the log probabilities of the tokens that brought it."""
        ...

    def end(self, at: int, completion: Completion) -> bytes:
        """A reply has ended."""
        ...

    def close(self, usages: Sequence[Usage]) -> bytes:
        """All have ended."""
        ...


class Notes:
    """What a relay is told behind each piece, so that another server can go on with the stream.

    Attributes:
        ended: replies whose end another server told.
    """

    def __init__(self, relayed: Relayed, prompt: tuple[int, ...] | None) -> None:
        """Of a request; `prompt` is what its prompt was read as, where that is not plain."""
        self.ended = frozenset(relayed.ended)
        self._begins = relayed.said is None
        self._prompt = prompt

    def opening(self, data: bytes) -> bytes:
        """The first piece; nothing where the stream goes on from another server's."""
        return data + Note(prompt=self._prompt).event() if self._begins else b""

    def behind(self, at: int, chunk: TextChunk, end: bool) -> bytes:
        """The note of a chunk of a reply; `end` where nothing comes behind it."""
        return Note(at=at, ids=chunk.token_ids, ended=chunk.completion is not None, end=end).event()


async def stream_replies(
    replies: Sequence[TrackedReply],
    readers: Sequence[ReplyReader | None],
    events: Events,
    ended: Ended | None,
    settle: Callable[[], Awaitable[None]],
    notes: Notes | None = None,
) -> AsyncGenerator[bytes, None]:
    """Events of all replies, as their text comes; what came in one chunk goes out in one piece.

    `ended` hears of each completion; `settle` is awaited when all have ended, before the client hears of it.
    """
    opening = events.begin()
    if notes is not None:
        opening = notes.opening(opening)
        for at, reply in enumerate(replies):
            for chunk in reply.told:
                _tell(at, chunk, readers[at], events)
    if opening:
        yield opening
    usages: dict[int, Usage] = {}
    over = frozenset[int]() if notes is None else notes.ended
    for at in over:
        replies[at].stop()
    async with aclosing(_chunks(replies)) as chunks:
        async for at, chunk in chunks:
            completion = chunk.completion
            if notes is not None and completion is not None and completion.cancel_reason == "drain":
                check_not_cancelled(completion)
            data = b"" if at in over else _tell(at, chunk, readers[at], events)
            if completion is not None:
                usages[at] = completion.usage
                if ended is not None:
                    ended(at, completion)
                data += b"" if at in over else events.end(at, completion)
                if len(usages) == len(replies):
                    await settle()
                    data += events.close([usages[index] for index in range(len(replies))])
            if notes is not None:
                data += notes.behind(at, chunk, len(usages) == len(replies))
            if data:
                yield data


async def whole_replies(replies: Sequence[TrackedReply]) -> list[Completion]:
    """The completions, when all have ended; the first error ends the wait."""
    return list(await asyncio.gather(*(reply.finished() for reply in replies)))


def _tell(at: int, chunk: TextChunk, reader: ReplyReader | None, events: Events) -> bytes:
    if chunk.completion is None and reader is None and chunk.logprobs is None:
        return events.text(at, chunk.text)
    reader = reader or PlainReader()
    parts = [*reader.push(chunk.text)]
    if chunk.completion is not None:
        parts += reader.finish()
    if not parts and not chunk.logprobs:
        return b""
    return events.parts(at, parts, chunk.logprobs)


async def _chunks(replies: Sequence[TrackedReply]) -> AsyncGenerator[tuple[int, TextChunk], None]:
    """Chunks of all replies; each waits until it is taken, so a slow reader's text stays in its reply."""
    if len(replies) == 1:
        async for chunk in replies[0]:
            yield 0, chunk
        return
    queue: asyncio.Queue[tuple[int, TextChunk | Exception]] = asyncio.Queue(1)

    async def pass_on(at: int, reply: TrackedReply) -> None:
        try:
            async for chunk in reply:
                await queue.put((at, chunk))
        except Exception as error:  # raised again where the chunks are read
            await queue.put((at, error))

    tasks = [asyncio.create_task(pass_on(at, reply)) for at, reply in enumerate(replies)]
    try:
        for_all = len(tasks)
        while for_all:
            at, news = await queue.get()
            if isinstance(news, Exception):
                raise news
            yield at, news
            for_all -= news.completion is not None
    finally:
        for task in tasks:
            task.cancel()
