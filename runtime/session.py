"""Session: a conversation whose next turn pays for its new tokens only.

After a turn the session keeps its sequence, the partial last page included. The next turn encodes
only the text that the chat template adds; where that does not go on exactly from the kept tokens
(a template that rewrites earlier messages, a reply cut by a stop text, a turn taken back, a sequence
given up under memory pressure) it looks in the radix tree instead, and the metrics say so.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, get_args

import numpy as np

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.generation import Completion, Reply, TextChunk, TextGenerator
from kvfold.runtime.loop.commands import Cancel, Discard
from kvfold.runtime.loop.ticket import Service
from kvfold.runtime.memory.paged_sequence import PagedSequence
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.scheduler.request import Prompt
from kvfold.runtime.text.chat import EncodedChat, add_reply, encode_chat

if TYPE_CHECKING:
    from kvfold.plugins.contract.chat_template import Message

# What to do with a conversation that reaches the context's end.
OnOverflow = Literal["error", "drop_oldest"]
NOTHING = EncodedChat("", [])


@dataclass(frozen=True)
class _Turn:
    """A message and its reply; `known` is the conversation up to the reply's last token."""

    message: Message
    reply: Message
    known: EncodedChat


@dataclass(frozen=True)
class _Pending:
    """A turn that was prepared: what it goes on from, and the reply that is to come."""

    message: Message
    before: tuple[_Turn, ...]
    rendered: str
    reply: Reply
    revision: int


class Session:
    """One conversation; use it as a context manager, or call `close`.

    Example:
        with llm.session(system="Answer briefly.") as session:
            print(session.send("What is a KV cache?").text)
            print(session.send("And a page of it?").text)
    """

    def __init__(
        self, generator: TextGenerator, system: str | None = None, on_overflow: OnOverflow = "error"
    ) -> None:
        """An empty conversation; `LLM.session` is the usual way, and says what the arguments are."""
        if on_overflow not in get_args(OnOverflow):
            raise RequestError(
                f"on_overflow is {on_overflow!r}; use one of {', '.join(map(repr, get_args(OnOverflow)))}"
            )
        self._generator = generator
        self._system = system
        self._on_overflow = on_overflow
        self._turns: tuple[_Turn, ...] = ()
        self._dropped: tuple[_Turn, ...] = ()
        self._revision = 0
        self._kept: PagedSequence | None = None
        self._running: Reply | None = None
        self._closed = False

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation so far, in the chat format."""
        return self._messages(self._turns)

    @property
    def dropped(self) -> tuple[Message, ...]:
        """Messages that the turn made last gives up for room, when it ends; none where it is undone."""
        return _messages_of(self._dropped)

    @property
    def num_tokens(self) -> int:
        """Tokens of the conversation up to the end of the last reply, the template's own included."""
        return len(self._known.token_ids)

    @property
    def system(self) -> str | None:
        """The system message.

        It can be set between turns; the turns so far stay and are computed again, as they come after it.
        """
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        self._check_free()
        self._system = text
        self._revision += 1

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
        self._check_free()
        return self._begin({"role": "user", "content": text}, self._turns, params or SamplingParams())

    def retry(self, params: SamplingParams | None = None) -> Generator[TextChunk, None, None]:
        """Answer the last message again, piece by piece.

        The new reply takes the old one's place when it ends; dropping the iterator keeps the old one.

        Raises:
            RequestError: there is no turn yet; else as for `stream`.
        """
        self._check_has_turn()
        *before, last = self._turns
        return self._begin(last.message, tuple(before), params or SamplingParams())

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
        self._check_has_turn()
        *before, last = self._turns
        self._change(tuple(before))
        return last.message

    def clear(self) -> None:
        """Take all turns back; the system message stays. Raises RequestError as `undo` does."""
        self._check_free()
        self._change(())

    def close(self) -> None:
        """Give back the kept pages; what is in the radix tree stays cached."""
        self._drop()
        self._closed = True

    def __enter__(self) -> Self:
        """The session itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    @property
    def _known(self) -> EncodedChat:
        return self._turns[-1].known if self._turns else NOTHING

    def _messages(self, turns: Iterable[_Turn]) -> tuple[Message, ...]:
        system: list[Message] = [] if self._system is None else [{"role": "system", "content": self._system}]
        return (*system, *_messages_of(turns))

    def _check_free(self) -> None:
        if self._closed:
            raise RequestError("the session is closed; open a new one")
        if self._running is not None:
            raise RequestError("the session is still streaming its last turn; finish or close that one first")

    def _check_has_turn(self) -> None:
        self._check_free()
        if not self._turns:
            raise RequestError("the conversation has no turn yet; send a message first")

    def _change(self, turns: tuple[_Turn, ...]) -> None:
        self._turns = turns
        self._revision += 1

    def _begin(
        self, message: Message, turns: tuple[_Turn, ...], params: SamplingParams
    ) -> Generator[TextChunk, None, None]:
        self._dropped = ()
        chat, dropped = self._encode(turns, message), 0
        if self._on_overflow == "drop_oldest":
            limit = self._generator.loop.max_length
            if turns and len(chat.token_ids) + min(params.max_tokens, limit // 4) > limit:
                dropped = self._excess(turns, message, limit // 2)
                chat = self._encode(turns[dropped:], message)
            left = max(1, limit - len(chat.token_ids))
            params = replace(params, max_tokens=min(params.max_tokens, left))
        prompt = Prompt(np.asarray(chat.token_ids, np.int64), chat.shared_length, self._kept)
        reply = self._generator.prepare(prompt, params, Service(keep=True))
        self._dropped = turns[:dropped]
        return self._run(_Pending(message, turns[dropped:], chat.text, reply, self._revision))

    def _encode(self, turns: tuple[_Turn, ...], message: Message) -> EncodedChat:
        known = turns[-1].known if turns else NOTHING
        return encode_chat(self._generator.tokenizer, [*self._messages(turns), message], known)

    def _excess(self, turns: tuple[_Turn, ...], message: Message, limit: int) -> int:
        """How many of the oldest turns to give up: the fewest that leave `limit` tokens, else all."""

        def fits(count: int) -> bool:
            return len(self._encode(turns[count:], message).token_ids) <= limit

        return 1 + bisect_left(range(1, len(turns)), True, key=fits)

    def _run(self, turn: _Pending) -> Generator[TextChunk, None, None]:
        self._check_free()
        if turn.revision != self._revision:
            raise RequestError("the conversation went on after this turn was made; call stream again")
        reply = self._running = turn.reply
        kept = False
        try:
            with closing(self._generator.stream(reply)) as chunks:
                for chunk in chunks:
                    if chunk.completion is not None:
                        kept = self._finish(turn, chunk.completion)
                        self._end(kept)
                    yield chunk
        finally:
            if self._running is reply:
                self._end(kept=False)
            if reply.finished and not kept:  # it ended, and its turn is undone
                self._discard(reply.ticket.request.sequence)
            if self._closed:
                self._drop()

    def _end(self, kept: bool) -> None:
        self._running = None
        if not kept:
            self._dropped = ()

    def _finish(self, turn: _Pending, completion: Completion) -> bool:
        """Remember the turn, its exact tokens, and the sequence that holds them, unless nothing was said."""
        if completion.finish_reason == "cancelled" and not completion.text:
            return False
        request = turn.reply.ticket.request
        ids = request.tokens[: request.length].tolist()
        known = add_reply(self._generator.tokenizer, turn.rendered, ids, completion.token_ids)
        reply: Message = {"role": "assistant", "content": completion.text}
        self._change((*turn.before, _Turn(turn.message, reply, known)))
        self._kept = request.sequence
        return True

    def _drop(self) -> None:
        self._discard(self._kept)
        self._kept = None

    def _discard(self, sequence: PagedSequence | None) -> None:
        if sequence is not None:
            self._generator.loop.post(Discard(sequence))
            self._generator.loop.settle()


def _messages_of(turns: Iterable[_Turn]) -> tuple[Message, ...]:
    return tuple(message for turn in turns for message in (turn.message, turn.reply))
