"""Completions on their way out: a whole body, or the events of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvfold.runtime.llm.generation import Completion
from kvfold.runtime.metrics import Usage
from kvfold.runtime.sampling.logprobs import TokenLogprob
from kvfold.runtime.server.http import sse
from kvfold.runtime.server.wire.chat_reply import DONE, ENCODER
from kvfold.runtime.server.wire.openai_usage import Head, openai_usage
from kvfold.runtime.server.wire.reply_parts import openai_finish
from kvfold.runtime.server.wire.token_texts import TokenTexts
from kvfold.runtime.structured.reply_events import ContentDelta, ReplyEvent

KIND = "text_completion"


@dataclass(frozen=True)
class Echo:
    """The prompt that a text begins with.

    Attributes:
        text: as it was sent, or the text of its tokens.
        token_ids: its tokens.
    """

    text: str
    token_ids: Sequence[int]


def completion_body(
    head: Head, completions: Sequence[Completion], n: int, echoes: Sequence[Echo] | None, texts: TokenTexts
) -> bytes:
    """The body of a completion.

    Args:
        head: of the response.
        completions: `n` for each prompt.
        n: replies to each prompt.
        echoes: a prompt for each reply, if the texts begin with them.
        texts: of the model's tokens.
    """
    choices = [
        _choice(at, completion, echoes[at] if echoes else Echo("", ()), texts)
        for at, completion in enumerate(completions)
    ]
    usage = openai_usage([completion.usage for completion in completions], n)
    return ENCODER.encode(_frame(head) | {"choices": choices, "usage": usage})


class CompletionEvents:
    """Events of one stream. What stays the same from token to token is encoded once."""

    def __init__(
        self, head: Head, n: int, echoes: Sequence[str], include_usage: bool, texts: TokenTexts
    ) -> None:
        """For a stream of `n` replies to each prompt; a reply begins with its echo, which may be empty."""
        self._head = head
        self._n = n
        self._texts = texts
        self._include_usage = include_usage
        self._echoes = echoes
        self._sent = [len(echo) for echo in echoes]
        chunk = b"data: " + ENCODER.encode(_frame(head))[:-1]
        usage = b',"usage":null}' if include_usage else b"}"
        self._opening = [chunk + b',"choices":[{"index":%d,"text":' % at for at in range(len(echoes))]
        self._closing = b"}]" + usage + b"\n\n"
        self._text_closing = b',"logprobs":null,"finish_reason":null' + self._closing

    def begin(self) -> bytes:
        """The prompts, where they are asked for."""
        return b"".join(self.text(at, echo) for at, echo in enumerate(self._echoes) if echo)

    def text(self, at: int, text: str) -> bytes:
        """More text of a reply."""
        return self._opening[at] + ENCODER.encode(text) + self._text_closing

    def parts(self, at: int, parts: Sequence[ReplyEvent], logprobs: Sequence[TokenLogprob] | None) -> bytes:
        """More of a reply, and the log probabilities of the tokens that brought it."""
        text = "".join(part.text for part in parts if isinstance(part, ContentDelta))
        found = None
        if logprobs is not None:
            ids = [one.token_id for one in logprobs]
            found = self._texts.completion(ids, logprobs, self._sent[at])
        self._sent[at] += len(text)
        return self._chunk(at, text, found, None)

    def end(self, at: int, completion: Completion) -> bytes:
        """A reply has ended."""
        return self._chunk(at, "", None, openai_finish(completion, False))

    def close(self, usages: Sequence[Usage]) -> bytes:
        """All replies have ended."""
        if not self._include_usage:
            return DONE
        chunk = _frame(self._head) | {"choices": [], "usage": openai_usage(usages, self._n)}
        return sse(ENCODER.encode(chunk)) + DONE

    def _chunk(self, at: int, text: str, logprobs: Any, finish: str | None) -> bytes:
        rest = ENCODER.encode({"logprobs": logprobs, "finish_reason": finish})
        return self._opening[at] + ENCODER.encode(text) + b"," + rest[1:-1] + self._closing


def _choice(at: int, completion: Completion, echo: Echo, texts: TokenTexts) -> dict[str, Any]:
    return {
        "index": at,
        "text": echo.text + completion.text,
        "logprobs": _logprobs(completion, echo, texts),
        "finish_reason": openai_finish(completion, False),
    }


def _logprobs(completion: Completion, echo: Echo, texts: TokenTexts) -> dict[str, Any] | None:
    if completion.logprobs is None:
        return None
    said = texts.completion(completion.token_ids, completion.logprobs, len(echo.text))
    if completion.prompt_logprobs is None:
        return said
    asked = texts.completion(echo.token_ids, completion.prompt_logprobs)
    return {name: asked[name] + said[name] for name in asked}


def _frame(head: Head) -> dict[str, Any]:
    return {"id": head.id, "object": KIND, "created": head.created, "model": head.model}
