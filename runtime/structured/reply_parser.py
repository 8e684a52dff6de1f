"""A reply's text, piece by piece, as events: reasoning, content, calls of tools.

Text that may be the beginning of a mark is held back until it is known. White space beside a mark belongs to
the mark. What does not fit a format is content, as it was written.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Callable, Mapping
from random import Random

from kvfold.runtime.structured.call_formats import CallFormat
from kvfold.runtime.structured.reasoning import Reasoning
from kvfold.runtime.structured.reply_events import (
    ContentDelta,
    ReasoningDelta,
    ReplyEvent,
    ToolCallArguments,
    ToolCallStart,
)

# White space that belongs to a mark, and how much of it: a model that writes more of it means it.
SPACE, MAX_SPACE = " \t\r\n", 64
Said = type[ContentDelta] | type[ReasoningDelta]
_STRUCTURE = re.compile(r'["\\{}\[\]]')
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ALPHABET = string.ascii_letters + string.digits


def new_call_id() -> str:
    """A random name for a call: nine letters and digits, since Mistral's templates refuse any other."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(9))


def same_call_ids(seed: str) -> Callable[[], str]:
    """Such names, the same wherever a reply is parsed."""
    draw = Random(seed)
    return lambda: "".join(draw.choices(_ALPHABET, k=9))


def kept_tokens(
    added_tokens: Mapping[str, int], reasoning: Reasoning | None, calls: CallFormat | None
) -> frozenset[int]:
    """Tokens whose text the parser must see, where decoding leaves special ones out.

    Args:
        added_tokens: ids of the tokenizer's added tokens, special or not, by their text.
        reasoning: the marks of reasoning.
        calls: the format of calls.
    """
    texts = [*((reasoning.begin, reasoning.end) if reasoning else ()), *(calls.texts if calls else ())]
    return frozenset(index for name, index in added_tokens.items() if any(name in text for text in texts))


class ReplyParser:
    """Parses one reply. Where its pieces are cut changes nothing but where the texts of events are."""

    def __init__(
        self,
        reasoning: Reasoning | None = None,
        calls: CallFormat | None = None,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        """At the beginning of a reply.

        Args:
            reasoning: the marks of reasoning; None: it is content like any other.
            calls: the format of calls; None: they are content like any other.
            new_id: names a call.
        """
        self._reasoning = reasoning
        self._calls = calls
        self._new_id = new_id
        self._held = ""
        self._events: list[ReplyEvent] = []
        self._index = -1
        self._head = calls.head if calls is not None else ""
        self._lead = ""  # of what is held, the beginning of a call that was read already
        self._object = _ObjectEnd()
        # Whether white space is dropped until something is said.
        self._trims = reasoning is not None and reasoning.opened
        self._step = self._think if self._trims else self._begin

    def push(self, text: str) -> list[ReplyEvent]:
        """Add text; returns what became certain."""
        self._held += text
        while self._held and self._step():
            pass
        return self._take()

    def finish(self) -> list[ReplyEvent]:
        """No more text comes; returns what was held back, but for marks that were cut beside a call."""
        if self._step == self._think:
            self._say(ReasoningDelta, self._held)
        elif self._index < 0:
            self._say(ContentDelta, self._lead + self._held)
        elif self._step == self._speak and not (
            self._trims and self._head.startswith(self._held.strip(SPACE))
        ):
            self._say(ContentDelta, self._held)
        self._held = ""
        return self._take()

    def _take(self) -> list[ReplyEvent]:
        events, self._events = self._events, []
        return events

    def _say(self, kind: Said, text: str) -> None:
        text = text.lstrip(SPACE) if self._trims else text
        if text:
            self._trims = False
            self._events.append(kind(text))

    # Each step reads from the text that is held, and says whether the next one may go on.

    def _begin(self) -> bool:
        """Before the answer: reasoning, a call that is the answer, or content."""
        marks = [(self._reasoning.begin, self._think)] if self._reasoning is not None else []
        if self._calls is not None and not self._calls.mark:
            marks.append((self._head, self._name))
        text = self._held.lstrip(SPACE)
        if len(self._held) - len(text) <= MAX_SPACE:
            for mark, step in marks:
                if text.startswith(mark):
                    self._trims, self._held = True, text
                    return self._pass(mark, step)
            if any(mark.startswith(text) for mark, _ in marks):
                return False
        self._step = self._speak
        return True

    def _think(self) -> bool:
        assert self._reasoning is not None
        if not self._say_until(self._reasoning.end, ReasoningDelta):
            return False
        self._pass(self._reasoning.end, self._begin)
        self._reasoning, self._trims = None, True
        return True

    def _speak(self) -> bool:
        if self._calls is None or not self._calls.mark:
            self._say(ContentDelta, self._held)
            self._held = ""
        elif self._say_until(self._head, ContentDelta):
            return self._pass(self._head, self._name)
        return False

    def _name(self) -> bool:
        assert self._calls is not None
        name = _NAME.match(self._held)
        rest = self._held[name.end() :] if name else self._held
        if name and rest.startswith(self._calls.between):
            self._index += 1
            self._object = _ObjectEnd()
            self._events.append(ToolCallStart(self._index, self._new_id(), name.group()))
            self._lead, self._held = "", rest
            return self._pass(self._calls.between, self._argue)
        if self._calls.between.startswith(rest):
            return False
        self._say(ContentDelta, self._lead)
        return self._pass("", self._speak)

    def _argue(self) -> bool:
        end = self._object.find(self._held)
        self._events.append(ToolCallArguments(self._index, self._held[:end]))
        self._held = "" if end is None else self._held[end:]
        if end is not None:
            self._step = self._close
        return end is not None

    def _close(self) -> bool:
        """After the arguments: another call of the block, or its end."""
        form = self._calls
        assert form is not None
        if form.separator is not None:
            another = form.after + form.separator + form.before
            if self._held.startswith(another):
                return self._pass(another, self._name)
            if another.startswith(self._held):
                return False
        end = form.after + form.end
        if end != self._held and end.startswith(self._held):
            return False
        self._trims = True
        return self._pass(end if self._held.startswith(end) else "", self._speak)

    def _pass(self, mark: str, step: Callable[[], bool]) -> bool:
        """Go on with a step behind a mark that the held text begins with."""
        self._lead = mark if step == self._name else ""
        self._step, self._held = step, self._held[len(mark) :]
        return True

    def _say_until(self, mark: str, kind: Said) -> bool:
        """Say what stands before a mark; without one, all that cannot belong to it. True at the mark."""
        at = self._held.find(mark)
        border = at if at >= 0 else len(self._held) - _overlap(self._held, mark)
        certain = max(len(self._held[:border].rstrip(SPACE)), border - MAX_SPACE)
        self._say(kind, self._held[:certain])
        self._held = self._held[border if at >= 0 else certain :]
        return at >= 0


class _ObjectEnd:
    """Finds where a JSON object ends, over its pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def find(self, text: str) -> int | None:
        """Where in this piece the object ends; None where it goes on."""
        at, self._escaped = int(self._escaped), False
        while found := _STRUCTURE.search(text, at):
            sign, at = found.group(), found.end()
            if sign == '"':
                self._in_string = not self._in_string
            elif self._in_string and sign == "\\":
                self._escaped = at == len(text)
                at += 1
            elif not self._in_string and sign != "\\":
                self._depth += 1 if sign in "{[" else -1
                if self._depth == 0:
                    return at
        return None


def _overlap(text: str, mark: str) -> int:
    """Characters at the end of a text that may be the beginning of a mark."""
    sizes = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(mark[:size])), 0)
