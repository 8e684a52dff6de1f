"""What the server needs of an AsyncLLM; a test puts a scripted one in its place."""

from __future__ import annotations

from typing import Any, Protocol

from kvfold.runtime.text.tokenizer import Tokenizer


class ServedReply(Protocol):
    """A reply that comes in pieces; see AsyncReply."""

    @property
    def id(self) -> int:
        """Of the request in the loop."""
        ...

    @property
    def buffered_bytes(self) -> int:
        """UTF-8 bytes of text that nobody took yet."""
        ...

    @property
    def kept(self) -> Any:
        """Of a reply that has ended: the pages for its conversation's next turn."""
        ...

    async def __anext__(self) -> Any:
        """The next TextChunk; the last one has a completion."""
        ...

    def cancel(self, reason: Any = "client") -> None:
        """End it within a step."""
        ...


class ServedLLM(Protocol):
    """A loaded model; see AsyncLLM."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to tokens and back."""
        ...

    @property
    def max_length(self) -> int:
        """Tokens of prompt and reply at most."""
        ...

    @property
    def page_size(self) -> int:
        """Tokens of a page."""
        ...

    @property
    def failure(self) -> Exception | None:
        """Why the engine died."""
        ...

    def submit(self, prompt: Any, params: Any, service: Any = ...) -> ServedReply:
        """Ask for a reply; never blocks."""
        ...

    def discard(self, kept: Any) -> None:
        """Give back pages that a reply kept; never blocks."""
        ...

    def snapshot(self) -> Any:
        """What the loop did until its last step; a LoopSnapshot."""
        ...

    async def drain(self, seconds: float) -> None:
        """Take no more, wait for what runs, then cancel the rest."""
        ...

    async def close(self) -> None:
        """End the engine's thread."""
        ...
