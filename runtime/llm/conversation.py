"""Conversation: its turns, and what the model reads for the next one. No engine: a session runs the turns."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.llm.generation import Completion
from kvfold.runtime.memory.paged_sequence import PagedSequence
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.scheduler.request import Prompt, Request
from kvfold.runtime.sessions.saved_session import SavedSession, SavedTurn
from kvfold.runtime.sessions.session_file import SessionFile
from kvfold.runtime.text.chat import NOTHING, EncodedChat, add_reply, encode_chat
from kvfold.runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from kvfold.plugins.contract.chat_template import Message

# What to do with a conversation that reaches the context's end.
OnOverflow = Literal["error", "drop_oldest"]


@dataclass(frozen=True)
class Turn:
    """A message and its reply; `known` is the conversation up to the reply's last token."""

    message: Message
    reply: Message
    known: EncodedChat


@dataclass(frozen=True)
class OpenTurn:
    """A turn whose reply is to come.

    Attributes:
        message: that it answers.
        prompt: what the model reads.
        params: how it answers; at a conversation's end with fewer tokens than were asked for.
        before: the turns that it goes on from.
        dropped: the turns that it gives up for room.
        rendered: the prompt as text.
        revision: of the conversation that it was opened in.
    """

    message: Message
    prompt: Prompt
    params: SamplingParams
    before: tuple[Turn, ...]
    dropped: tuple[Turn, ...]
    rendered: str
    revision: int


class Conversation:
    """What was said, one turn at a time: `open` or `open_again`, `start`, `finish` where it ends, `leave`.

    Attributes:
        closed: no turn may be opened any more.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_length: int,
        system: str | None,
        on_overflow: OnOverflow,
        file: SessionFile | None = None,
    ) -> None:
        """A conversation of at most `max_length` tokens; the rest as for `LLM.session`."""
        if on_overflow not in get_args(OnOverflow):
            raise RequestError(
                f"on_overflow is {on_overflow!r}; use one of {', '.join(map(repr, get_args(OnOverflow)))}"
            )
        self.closed = False
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._system = system
        self._on_overflow = on_overflow
        self._turns: tuple[Turn, ...] = ()
        self._dropped: tuple[Turn, ...] = ()
        self._revision = 0
        self._kept: PagedSequence | None = None
        self._running: OpenTurn | None = None
        self._file = file
        self._saving = Lock()
        if file is not None:
            self._turns = tuple(Turn(turn.said[0], turn.said[1], turn.known) for turn in file.session.turns)
            self._system = file.session.facts.get("system") if system is None else system

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation so far, in the chat format."""
        return self._messages(self._turns)

    @property
    def dropped(self) -> tuple[Message, ...]:
        """Messages that the turn made last gives up for room, when it ends; none where it is undone."""
        return _messages_of(self._dropped)

    @property
    def known(self) -> EncodedChat:
        """The conversation up to the end of the last reply."""
        return self._turns[-1].known if self._turns else NOTHING

    @property
    def system(self) -> str | None:
        """The system message."""
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        self.check_free()
        self._system = text
        self._revision += 1

    @property
    def kept(self) -> PagedSequence | None:
        """The sequence that holds the last turn's pages."""
        return self._kept

    @property
    def unsaved(self) -> str | None:
        """Why it is not in its file as it stands; None where it is, or has no file."""
        return None if self._file is None else self._file.failure

    def save(self) -> None:
        """Bring its file, if it has one, to where it stands; a disk that fails is told by `unsaved`."""
        if self._file is not None and not self.closed:
            with self._saving:
                turns = (SavedTurn([turn.message, turn.reply], turn.known) for turn in self._turns)
                self._file.save(SavedSession({"system": self._system}, tuple(turns)))

    def open(self, text: str, params: SamplingParams) -> OpenTurn:
        """A turn with a message of the user; raises RequestError as `Session.stream` does."""
        self.check_free()
        return self._open({"role": "user", "content": text}, self._turns, params)

    def open_again(self, params: SamplingParams) -> OpenTurn:
        """The last turn, with another reply; raises RequestError as `Session.retry` does."""
        self._check_has_turn()
        *before, last = self._turns
        return self._open(last.message, tuple(before), params)

    def start(self, turn: OpenTurn) -> None:
        """Its reply begins; raises RequestError where another one runs or the conversation went on."""
        self.check_free()
        if turn.revision != self._revision:
            raise RequestError("the conversation went on after this turn was made; call stream again")
        self._running = turn

    def finish(self, turn: OpenTurn, completion: Completion, request: Request) -> None:
        """Remember the turn, its exact tokens, and the sequence that holds them, unless nothing was said."""
        self._running = None
        if completion.finish_reason == "cancelled" and not completion.text:
            self._dropped = ()
            return
        ids = request.tokens[: request.length].tolist()
        known = add_reply(self._tokenizer, turn.rendered, ids, completion.token_ids)
        reply: Message = {"role": "assistant", "content": completion.text}
        self._change((*turn.before, Turn(turn.message, reply, known)))
        self._kept = request.sequence

    def leave(self, turn: OpenTurn) -> None:
        """Nobody reads its reply any more; a reply that did not finish is undone."""
        if self._running is turn:
            self._running = None
            self._dropped = ()

    def undo(self) -> Message:
        """Take the last turn back; raises RequestError as `Session.undo` does."""
        self._check_has_turn()
        *before, last = self._turns
        self._change(tuple(before))
        return last.message

    def clear(self) -> None:
        """Take all turns back; raises RequestError as `Session.clear` does."""
        self.check_free()
        self._change(())

    def close(self) -> PagedSequence | None:
        """Open no more turns, and let go of its file; returns the sequence kept for the next turn."""
        self.closed = True
        if self._file is not None:
            with self._saving:
                self._file.close()
        kept, self._kept = self._kept, None
        return kept

    def check_free(self) -> None:
        """Refuse while a turn runs, or when it is closed; raises RequestError."""
        if self.closed:
            raise RequestError("the session is closed; open a new one")
        if self._running is not None:
            raise RequestError("the session is still streaming its last turn; finish or close that one first")

    def _check_has_turn(self) -> None:
        self.check_free()
        if not self._turns:
            raise RequestError("the conversation has no turn yet; send a message first")

    def _change(self, turns: tuple[Turn, ...]) -> None:
        self._turns = turns
        self._revision += 1

    def _messages(self, turns: Iterable[Turn]) -> tuple[Message, ...]:
        system: list[Message] = [] if self._system is None else [{"role": "system", "content": self._system}]
        return (*system, *_messages_of(turns))

    def _open(self, message: Message, turns: tuple[Turn, ...], params: SamplingParams) -> OpenTurn:
        self._dropped = ()
        chat, dropped, limit = self._encode(turns, message), 0, self._max_length
        if self._on_overflow == "drop_oldest":
            if turns and len(chat.token_ids) + min(params.max_tokens, limit // 4) > limit:
                dropped = self._excess(turns, message, limit // 2)
                chat = self._encode(turns[dropped:], message)
            left = max(1, limit - len(chat.token_ids))
            params = replace(params, max_tokens=min(params.max_tokens, left))
        ids = np.asarray(chat.token_ids, np.int64)
        prompt = Prompt(ids, chat.shared_length, chat.borders, self._kept)
        return OpenTurn(message, prompt, params, turns[dropped:], turns[:dropped], chat.text, self._revision)

    def note_dropped(self, turn: OpenTurn) -> None:
        """The turn can run: what it gives up for room is known from now on."""
        self._dropped = turn.dropped

    def _encode(self, turns: tuple[Turn, ...], message: Message) -> EncodedChat:
        known = turns[-1].known if turns else NOTHING
        return encode_chat(self._tokenizer, [*self._messages(turns), message], known)

    def _excess(self, turns: tuple[Turn, ...], message: Message, limit: int) -> int:
        """How many of the oldest turns to give up: the fewest that leave `limit` tokens, else all."""

        def fits(count: int) -> bool:
            return len(self._encode(turns[count:], message).token_ids) <= limit

        return 1 + bisect_left(range(1, len(turns)), True, key=fits)


def _messages_of(turns: Iterable[Turn]) -> tuple[Message, ...]:
    return tuple(message for turn in turns for message in (turn.message, turn.reply))
