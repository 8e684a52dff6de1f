"""Generation: prompts go to the scheduler, tokens come back as text. LLM and Session are built on it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from kvfold.runtime.engine.protocol import Engine
from kvfold.runtime.metrics import Usage
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.sampling.logprobs import TokenLogprob
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.scheduler.request import FinishReason, Prompt, Request
from kvfold.runtime.scheduler.scheduler import Scheduler
from kvfold.runtime.text.detokenize import Detokenizer
from kvfold.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Completion:
    """A finished reply.

    Attributes:
        text: the reply, without special tokens and stop text.
        token_ids: what was generated, an end-of-sequence token and the tokens of a stop text included.
        finish_reason: `stop` (end-of-sequence token or stop text), `length`, or `cancelled`.
        logprobs: one for each token, if SamplingParams.logprobs asked for them.
        usage: what it cost.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenLogprob] | None
    usage: Usage


@dataclass(frozen=True)
class TextChunk:
    """A piece of a streamed reply.

    Attributes:
        text: new text; the pieces together are the completion's text.
        completion: the finished reply, in the last chunk only.
    """

    text: str
    completion: Completion | None = None


@dataclass(frozen=True)
class Reply:
    """A request and its text."""

    request: Request
    detokenizer: Detokenizer

    @property
    def finished(self) -> bool:
        """Whether no more tokens come."""
        return self.request.finish_reason is not None

    def completion(self) -> Completion:
        """The finished reply."""
        assert self.request.finish_reason is not None
        self.detokenizer.finish()
        return Completion(
            text=self.detokenizer.text,
            token_ids=self.request.completion_ids,
            finish_reason=self.request.finish_reason,
            logprobs=None if self.request.params.logprobs is None else self.request.logprobs,
            usage=self.request.usage(),
        )


class TextGenerator:
    """Drives one scheduler. Synchronous: whoever waits for a reply runs the steps, of all requests."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, config: RuntimeConfig) -> None:
        """A generator with the engine to itself."""
        self.tokenizer = tokenizer
        self.scheduler = Scheduler(engine, config)
        self._engine = engine

    def prepare(self, prompt: Prompt, params: SamplingParams, keep: bool = False) -> Reply:
        """A checked reply that was not submitted yet.

        Raises:
            RequestError: the prompt is empty, too long, or has token ids out of range.
            CapacityError: it needs more pages than the whole pool has.
        """
        detokenizer = Detokenizer(self.tokenizer.decode, params.stop)
        request = Request(
            prompt, params, detokenizer, self.tokenizer.eos_token_ids, self._engine.info, keep=keep
        )
        self.scheduler.check_capacity(request)
        return Reply(request, detokenizer)

    def run(self, replies: Sequence[Reply]) -> list[Completion]:
        """Run replies to their ends; on any exception all of them are cancelled."""
        try:
            for reply in replies:
                self.scheduler.submit(reply.request)
            while not all(reply.finished for reply in replies):
                self.scheduler.step()
        finally:
            self._cancel(replies)
        return [reply.completion() for reply in replies]

    def stream(self, reply: Reply) -> Generator[TextChunk, None, None]:
        """Run a reply piece by piece; it is cancelled when the iterator is closed or dropped."""
        try:
            self.scheduler.submit(reply.request)
            while not reply.finished:
                self.scheduler.step()
                text = reply.detokenizer.take()
                if text:
                    yield TextChunk(text)
            # Also reached when somebody else's step finished the reply between two pieces.
            completion = reply.completion()
            yield TextChunk(reply.detokenizer.take(), completion)
        finally:
            self._cancel([reply])

    def _cancel(self, replies: Sequence[Reply]) -> None:
        for reply in replies:
            self.scheduler.cancel(reply.request)
