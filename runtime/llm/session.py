"""Session: a conversation whose next turn pays for its new tokens only.

After a turn the session keeps its sequence, the partial last page included. The next turn encodes
only the text that the chat template adds; where that does not go on exactly from the kept tokens
(a template that rewrites earlier messages, a reply cut by a stop text, a turn taken back, a sequence
given up under memory pressure) it looks in the radix tree instead, and the metrics say so.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kvfold.runtime.llm.conversation import Conversation, OnOverflow, OpenTurn
from kvfold.runtime.llm.generation import Completion, Reply, TextChunk, TextGenerator
from kvfold.runtime.loop.commands import Cancel, Discard
from kvfold.runtime.loop.ticket import Service
from kvfold.runtime.memory.paged_sequence import PagedSequence
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.sessions.session_file import SessionFile

if TYPE_CHECKING:
    from kvfold.plugins.contract.chat_template import Message

KEEP = Service(keep=True)


class Session:
    """One conversation; use it as a context manager, or call `close`.

    Example:
        with llm.session(system="Answer briefly.") as session:
            print(session.send("What is a KV cache?").text)
            print(session.send("And a page of it?").text)
    """

    def __init__(
        self,
        generator: TextGenerator,
        system: str | None = None,
        on_overflow: OnOverflow = "error",
        file: SessionFile | None = None,
    ) -> None:
        """A conversation; `LLM.session` is the usual way, and says what the arguments are."""
        self._generator = generator
        self._conversation = Conversation(
            generator.tokenizer, generator.loop.max_length, system, on_overflow, file
        )
        self._running: Reply | None = None

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation so far, in the chat format."""
        return self._conversation.messages

    @property
    def dropped(self) -> tuple[Message, ...]:
        """Messages that the turn made last gives up for room, when it ends; none where it is undone."""
        return self._conversation.dropped

    @property
    def num_tokens(self) -> int:
        """Tokens of the conversation up to the end of the last reply, the template's own included."""
        return len(self._conversation.known.token_ids)

    @property
    def system(self) -> str | None:
        """The system message.

        It can be set between turns; the turns so far stay and are computed again, as they come after it.
        """
        return self._conversation.system

    @system.setter
    def system(self, text: str | None) -> None:
        self._conversation.system = text
        self._conversation.save()

    @property
    def unsaved(self) -> str | None:
        """Why its file does not hold all of it, if it has a file: it goes on in memory all the same."""
        return self._conversation.unsaved

    def send(self, text: str, params: SamplingParams | None = None) -> Completion:
        """Say something and wait for the reply; errors as for `LLM.chat`, and the turn is then undone."""
        for chunk in self.stream(text, params):
            if chunk.completion is not None:
                return chunk.completion
        raise AssertionError("a stream ends with its completion")

    def stream(self, text: str, params: SamplingParams | None = None) -> Generator[TextChunk, None, None]:
        """Say something and get the reply piece by piece; dropping the iterator undoes the turn.

        Raises:
            RequestError: the session is closed, or its last turn is still being streamed; else as for
                `LLM.chat`.
        """
        return self._begin(self._conversation.open(text, params or SamplingParams()))

    def retry(self, params: SamplingParams | None = None) -> Generator[TextChunk, None, None]:
        """Answer the last message again, piece by piece.

        The new reply takes the old one's place when it ends; dropping the iterator keeps the old one.

        Raises:
            RequestError: there is no turn yet; else as for `stream`.
        """
        return self._begin(self._conversation.open_again(params or SamplingParams()))

    def stop(self) -> None:
        """End the reply that is being streamed before its next token, and keep what was said as the turn.

        The stream then ends as always, with a completion; its finish_reason is `cancelled`. Where nothing was
        said yet its text is empty, and the turn is undone. Nothing happens where no reply is streamed. A
        signal handler or another thread may call it.
        """
        running = self._running
        if running is not None:
            self._generator.loop.post(Cancel(running.ticket, keep=True))

    def undo(self) -> Message:
        """Take the last turn back; returns the message that began it.

        What that turn gave up to make room (`dropped`) does not come back.

        Raises:
            RequestError: there is no turn, the last one is still being streamed, or the session is closed.
        """
        message = self._conversation.undo()
        self._conversation.save()
        return message

    def clear(self) -> None:
        """Take all turns back; the system message stays. Raises RequestError as `undo` does."""
        self._conversation.clear()
        self._conversation.save()

    def close(self) -> None:
        """Give back the kept pages and its file; what is in the radix tree stays cached."""
        self._discard(self._conversation.close())

    def __enter__(self) -> Self:
        """The session itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _begin(self, turn: OpenTurn) -> Generator[TextChunk, None, None]:
        reply = self._generator.prepare(turn.prompt, turn.params, KEEP)
        self._conversation.note_dropped(turn)
        return self._run(turn, reply)

    def _run(self, turn: OpenTurn, reply: Reply) -> Generator[TextChunk, None, None]:
        conversation = self._conversation
        conversation.start(turn)
        self._running = reply
        try:
            with closing(self._generator.stream(reply)) as chunks:
                for chunk in chunks:
                    if chunk.completion is not None:
                        conversation.finish(turn, chunk.completion, reply.ticket.request)
                        conversation.save()
                        self._running = None
                    yield chunk
        finally:
            conversation.leave(turn)
            if self._running is reply:
                self._running = None
            left = reply.ticket.request.sequence if reply.finished else None
            if left is not conversation.kept or conversation.closed:
                self._discard(left)  # it ended, and its turn is undone

    def _discard(self, sequence: PagedSequence | None) -> None:
        if sequence is not None:
            self._generator.loop.post(Discard(sequence))
            self._generator.loop.settle()
