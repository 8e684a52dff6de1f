"""Session: a conversation whose next turn pays for its new tokens only.

After a turn the session keeps its sequence, the partial last page included. The next turn encodes
only the text that the chat template adds; where that does not go on exactly from the kept tokens
(a template that rewrites earlier messages, a reply cut by a stop text, a sequence given up under
memory pressure) it looks in the radix tree instead, and the metrics say so.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.generation import Completion, Reply, TextChunk, TextGenerator
from kvfold.runtime.memory.paged_sequence import PagedSequence
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.scheduler.request import Prompt
from kvfold.runtime.text.chat import EncodedChat, add_reply, encode_chat

if TYPE_CHECKING:
    from kvfold.plugins.contract.chat_template import Message


class Session:
    """One conversation; use it as a context manager, or call `close`.

    Example:
        with llm.session(system="Answer briefly.") as session:
            print(session.send("What is a KV cache?").text)
            print(session.send("And a page of it?").text)
    """

    def __init__(self, generator: TextGenerator, system: str | None = None) -> None:
        """An empty conversation with an optional system message; `LLM.session` is the usual way."""
        self._generator = generator
        self._messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self._known = EncodedChat("", [])
        self._kept: PagedSequence | None = None
        self._turn: Reply | None = None
        self._closed = False

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation so far, in the chat format."""
        return tuple(self._messages)

    def send(self, text: str, params: SamplingParams | None = None) -> Completion:
        """Say something and wait for the reply; errors as for `LLM.chat`, and the turn is then undone."""
        for chunk in self.stream(text, params):
            if chunk.completion is not None:
                return chunk.completion
        raise AssertionError("a stream ends with its completion")

    def stream(self, text: str, params: SamplingParams | None = None) -> Generator[TextChunk, None, None]:
        """Say something and get the reply piece by piece; dropping the iterator undoes the turn.

        Raises:
            RequestError: the session is closed, or its last turn is still being streamed.
        """
        self._check_open()
        message: Message = {"role": "user", "content": text}
        chat = encode_chat(self._generator.tokenizer, [*self._messages, message], self._known)
        prompt = Prompt(np.asarray(chat.token_ids, np.int64), chat.shared_length)
        reply = self._generator.prepare(self._continue(prompt), params or SamplingParams(), keep=True)
        return self._run(reply, message, chat.text)

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

    def _check_open(self) -> None:
        if self._closed:
            raise RequestError("the session is closed; open a new one")
        if self._turn is not None:
            raise RequestError("the session is still streaming its last turn; finish or close that one first")

    def _continue(self, prompt: Prompt) -> Prompt:
        """Go on from the kept sequence where the prompt begins with exactly its tokens."""
        kept = self._kept
        if kept is None:
            return prompt
        cached = kept.tokens[: kept.num_computed]
        fits = len(cached) < len(prompt.token_ids) and np.array_equal(prompt.token_ids[: len(cached)], cached)
        if fits and not kept.released:
            return replace(prompt, kept=kept)
        self._drop()
        self._generator.scheduler.metrics.rematched_turns += 1
        return prompt

    def _run(self, reply: Reply, message: Message, rendered: str) -> Generator[TextChunk, None, None]:
        self._check_open()
        if reply.request.kept is not self._kept:
            raise RequestError("the conversation went on after this turn was made; call stream again")
        self._turn = reply
        finished = False
        try:
            with closing(self._generator.stream(reply)) as chunks:
                for chunk in chunks:
                    if chunk.completion is not None:
                        self._finish(reply, chunk.completion, message, rendered)
                        finished = True
                        self._turn = None
                    yield chunk
        finally:
            if self._turn is reply:
                self._turn = None
            sequence = reply.request.sequence
            if sequence is not None and not finished:
                self._generator.scheduler.discard(sequence)  # it ended, but nobody took the completion
            if self._closed:
                self._drop()

    def _finish(self, reply: Reply, completion: Completion, message: Message, rendered: str) -> None:
        """Remember the turn, its exact tokens, and the sequence that holds them."""
        self._messages += [message, {"role": "assistant", "content": completion.text}]
        ids = reply.request.tokens[: reply.request.length].tolist()
        self._known = add_reply(self._generator.tokenizer, rendered, ids, completion.token_ids)
        self._kept = reply.request.sequence

    def _drop(self) -> None:
        if self._kept is not None:
            self._generator.scheduler.discard(self._kept)
            self._kept = None
