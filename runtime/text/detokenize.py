"""Streaming detokenisation: tokens come in, only whole characters that no stop text can take back go out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvfold.runtime.text.tokenizer import Tokenizer

INCOMPLETE = "\ufffd"


class Detokenizer:
    """Text of one reply.

    A token of a byte-level vocabulary may hold a part of a character, and a decoder may treat the
    first token of a text specially. So the new text is the difference between decoding the tokens
    since the last whole character with and without the new ones; while it ends in U+FFFD it waits.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stop: Sequence[str] = (),
        before: Sequence[int] = (),
    ) -> None:
        """Nothing was said yet.

        Args:
            decode: turns token ids into text, special tokens left out.
            stop: texts that end the reply.
            before: the end of the prompt, whose text the reply goes on with. After a special token, as after
                nothing, a reply begins a text of its own.
        """
        self._decode = decode
        self._stop = tuple(stop)
        self._context_text = decode(before) if before else ""
        self._tokens = [] if self._context_text.endswith(INCOMPLETE) else list(before)
        self._context = 0
        self._decoded = len(self._tokens)
        self._context_text = self._context_text if self._tokens else ""
        self._text = ""
        self._sent = 0
        self.stop_text: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop text (`stop_text`) is complete."""
        return self.stop_text is not None

    @property
    def text(self) -> str:
        """The whole reply so far, text still held back for a stop text included."""
        return self._text

    def push(self, token_id: int) -> bool:
        """Add a token; True when a stop text is complete, and the text then ends before it."""
        self._tokens.append(token_id)
        window = self._decode(self._tokens[self._context :])
        if window.endswith(INCOMPLETE) or len(window) <= len(self._context_text):
            return False
        new = self._behind_context(window)
        self._context, self._decoded = self._decoded, len(self._tokens)
        self._context_text = self._decode(self._tokens[self._context : self._decoded])
        return self._append(new)

    def finish(self) -> None:
        """No more tokens come: what never became a whole character is text as it is."""
        if not self.stopped:
            self._append(self._behind_context(self._decode(self._tokens[self._context :])))
            self._context = self._decoded = len(self._tokens)
            self._context_text = ""
        self._stop = ()

    def _behind_context(self, window: str) -> str:
        """What of a text of the context and the new tokens is the new ones'.

        Bytes that are no character make some decoders give up the characters right before them, too.
        """
        if window.startswith(self._context_text):
            return window[len(self._context_text) :]
        return self._decode(self._tokens[self._decoded :])

    def take(self) -> str:
        """Text that became certain since the last call."""
        end = len(self._text) if self.stopped or not self._stop else len(self._text) - self._undecided()
        piece = self._text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece

    def _append(self, new: str) -> bool:
        """Add text and look for a stop text in what is new (and the border before it)."""
        if not self._stop:
            self._text += new
            return False
        border = max(0, len(self._text) - max(map(len, self._stop)) + 1)
        self._text += new
        found = [(at, stop) for stop in self._stop if (at := self._text.find(stop, border)) >= 0]
        if found:
            at, self.stop_text = min(found)
            self._text = self._text[:at]
        return self.stopped

    def _undecided(self) -> int:
        """Characters at the end that may be the beginning of a stop text."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self._text)), longest, -1):
                if self._text.endswith(stop[:length]):
                    longest = length
                    break
        return longest


def decode_after(tokenizer: Tokenizer, before: Sequence[int], token_ids: Sequence[int]) -> str:
    """Text of tokens behind others, special ones included; a Detokenizer with `before` gives the same."""
    known = tokenizer.decode(before) if before else ""
    if not known or known.endswith(INCOMPLETE):
        return tokenizer.decode_rendered(token_ids)
    whole = tokenizer.decode_rendered([*before, *token_ids])
    return whole[len(known) :] if whole.startswith(known) else tokenizer.decode_rendered(token_ids)
