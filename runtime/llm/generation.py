"""Generation: prompts go to the loop, tokens come back as text. LLM, Session and AsyncLLM are built on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.engine.protocol import Engine
from kvfold.runtime.loop.commands import Cancel
from kvfold.runtime.loop.engine_loop import EngineLoop
from kvfold.runtime.loop.ticket import CancelReason, Said, Service, Ticket
from kvfold.runtime.memory.tiers.kv_tier import KvTier
from kvfold.runtime.metrics import Usage
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.sampling.logprobs import TokenLogprob
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.sampling.sampling_state import SamplingState
from kvfold.runtime.scheduler.request import FinishReason, Prompt, Request
from kvfold.runtime.text.detokenize import Detokenizer
from kvfold.runtime.text.tokenizer import Tokenizer

DEFAULT_SERVICE = Service()


@dataclass(frozen=True)
class Completion:
    """A finished reply.

    Attributes:
        text: the reply, without special tokens and stop text.
        token_ids: what was generated, an end-of-sequence token and the tokens of a stop text included.
        finish_reason: `stop` (end-of-sequence token or stop text), `length`, or `cancelled`.
        logprobs: one for each token, if SamplingParams.logprobs asked for them.
        usage: what it cost.
        stop_text: the stop text that ended it, if one did.
        prompt_logprobs: one for each token of the prompt, None for the first, if
            SamplingParams.prompt_logprobs asked for them.
        cancel_reason: who or what cancelled it, if it was.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenLogprob] | None
    usage: Usage
    stop_text: str | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    cancel_reason: CancelReason | None = None


@dataclass(frozen=True)
class TextChunk:
    """A piece of a streamed reply.

    Attributes:
        text: new text; the pieces together are the completion's text.
        token_ids: new tokens; their text may come later, where it waits for a whole character or a stop text.
        logprobs: theirs, if SamplingParams.logprobs asked for them.
        completion: the finished reply, in the last chunk only.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    completion: Completion | None = None


class Reply:
    """A reply as it grows: the loop's thread writes it, one other thread reads it.

    Attributes:
        ticket: its request in the loop's hands.
        params: how it is sampled.
        told: its pieces that were read before it began here.
    """

    def __init__(
        self, request: Request, state: SamplingState, tokenizer: Tokenizer, service: Service
    ) -> None:
        """A reply of which nothing was submitted yet."""
        self.params = state.params
        self.told: list[TextChunk] = []
        self._state = state
        self.ticket = Ticket(request, state, self, deadline=service.deadline)
        kept = service.kept_tokens
        decode = partial(tokenizer.decode, keep=kept) if kept else tokenizer.decode
        last = request.tokens[request.prompt_length - 1 : request.prompt_length].tolist()
        self._detokenizer = Detokenizer(decode, state.params.stop, last)
        self._logprobs: list[TokenLogprob] = []
        self._unread: deque[tuple[str, int, TokenLogprob | None]] = deque()
        self._taken: list[int] = []
        self._taken_logprobs: list[TokenLogprob] = []
        self._rest = ""
        self._finished = False

    def resume(self, said: Said) -> None:
        """Begin behind what was said, as if it had been sampled here and read; it may have ended with that.

        Raises:
            RequestError: it is more than the reply may have, or is not of this vocabulary.
        """
        for piece in said:
            for token_id in piece:
                self._repeat(token_id)
            self._state.replay(piece)
            text = "".join(text for text, _, _ in self._unread)
            self._unread.clear()
            self.told.append(TextChunk(text, piece, None if self.params.logprobs is None else ()))
        request, constraint = self.ticket.request, self._state.constraint
        if constraint is not None and constraint.finished and request.finish_reason is None:
            request.finish_reason = "stop"
        if self.ticket.ended:
            self.end()

    def _repeat(self, token_id: int) -> None:
        request = self.ticket.request
        if not 0 <= token_id < self._state.vocab_size or request.finish_reason is not None:
            raise RequestError(f"token id {token_id} cannot be next in this reply; begin the reply anew")
        request.append(token_id, self.push(token_id, None, token_id in request.end_tokens))

    def push(self, token_id: int, logprob: TokenLogprob | None, ends: bool) -> bool:
        """Take a token, as the loop's Receiver; True when a stop text is complete."""
        stopped = not ends and self._detokenizer.push(token_id)
        if logprob is not None:
            self._logprobs.append(logprob)
        self._unread.append((self._detokenizer.take(), token_id, logprob))
        return stopped

    def end(self) -> None:
        """No more tokens come."""
        try:
            self._detokenizer.finish()
            self._rest = self._detokenizer.take()
        finally:  # nobody waits for ever, whatever a tokenizer does
            self._finished = True

    @property
    def finished(self) -> bool:
        """Whether no more tokens come."""
        return self._finished

    @property
    def has_news(self) -> bool:
        """Whether there is something to take."""
        return bool(self._unread) or self._finished

    @property
    def unread_characters(self) -> int:
        """Characters that wait to be taken."""
        return sum(len(text) for text, _, _ in tuple(self._unread))

    def take(self) -> TextChunk | None:
        """All that is new as one chunk; None where there is no new text, whose tokens come with the next.

        Raises:
            KvfoldError: the request, or the engine, failed; what came before was given.
        """
        finished = self._finished  # looked at first: nothing is added after the end
        text = ""
        while self._unread:
            piece, token, logprob = self._unread.popleft()
            text += piece
            self._taken.append(token)
            if logprob is not None:
                self._taken_logprobs.append(logprob)
        if not text and not finished:
            return None
        completion = self.completion() if finished else None
        asked = self.params.logprobs is not None
        chunk = TextChunk(
            text + self._rest if finished else text,
            tuple(self._taken),
            tuple(self._taken_logprobs) if asked else None,
            completion,
        )
        self._taken.clear()
        self._taken_logprobs.clear()
        return chunk

    def completion(self) -> Completion:
        """The finished reply.

        Raises:
            KvfoldError: the request, or the engine, failed.
        """
        ticket = self.ticket
        if ticket.error is not None:
            raise ticket.error
        assert ticket.request.finish_reason is not None
        return Completion(
            text=self._detokenizer.text,
            token_ids=ticket.request.completion_ids,
            finish_reason=ticket.request.finish_reason,
            logprobs=None if self.params.logprobs is None else self._logprobs,
            usage=ticket.usage(),
            stop_text=self._detokenizer.stop_text,
            prompt_logprobs=(
                None if self.params.prompt_logprobs is None else [None, *ticket.prompt_logprobs]
            ),
            cancel_reason=ticket.cancel_reason,
        )


class TextGenerator:
    """Text over a loop. Any thread may use it; where the loop has no thread, who waits runs its turns.

    Attributes:
        tokenizer: text to tokens and back.
        loop: the engine's owner.
    """

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, config: RuntimeConfig, tier: KvTier | None = None
    ) -> None:
        """A generator with the engine to itself, and a tier below its pages or none."""
        self.tokenizer = tokenizer
        self.loop = EngineLoop(engine, config, tier)

    def prepare(
        self,
        prompt: Prompt,
        params: SamplingParams,
        service: Service = DEFAULT_SERVICE,
        said: Said = (),
    ) -> Reply:
        """A checked reply that was not submitted yet; it goes on from what it has `said` elsewhere.

        Raises:
            RequestError: the prompt is empty, too long, or has token ids out of range; or `said` is no
                beginning of a reply.
            CapacityError: it needs more pages than the whole pool has.
            EngineError: the engine failed.
        """
        info, eos = self.loop.info, self.tokenizer.eos_token_ids
        if params.prompt_logprobs is not None:
            prompt = replace(prompt, logits_from=0)
        if said:
            prompt = replace(prompt, logits_from=len(prompt.token_ids) + sum(map(len, said)) - 1)
        request = Request(
            prompt,
            params.max_tokens,
            info,
            end_tokens=frozenset(params.stop_token_ids).union(() if params.ignore_eos else eos),
            keep=service.keep,
            priority=service.priority,
        )
        constraint = None if service.constraint is None else service.constraint()
        state = SamplingState(params, prompt.token_ids, eos, info.vocab_size, constraint)
        reply = Reply(request, state, self.tokenizer, service)
        if said:
            reply.resume(said)
        self.loop.check(reply.ticket)
        return reply

    def run(self, replies: Sequence[Reply]) -> list[Completion]:
        """Run replies to their ends; on any exception all of them are cancelled."""
        try:
            for reply in replies:
                self.loop.submit(reply.ticket)
            for reply in replies:
                self._wait(reply)
                reply.completion()
        finally:
            self._cancel(replies)
        return [reply.completion() for reply in replies]

    def stream(self, reply: Reply) -> Generator[TextChunk, None, None]:
        """Run a reply piece by piece; it is cancelled when the iterator is closed or dropped."""
        try:
            self.loop.submit(reply.ticket)
            while True:
                chunk = reply.take()
                if chunk is None:
                    self.loop.advance(lambda: reply.has_news)
                    continue
                yield chunk
                if chunk.completion is not None:
                    return
        finally:
            self._cancel([reply])

    def _wait(self, reply: Reply) -> None:
        while not reply.finished:
            self.loop.advance(lambda: reply.finished)

    def _cancel(self, replies: Sequence[Reply]) -> None:
        running = [reply for reply in replies if not reply.finished]
        for reply in running:
            self.loop.post(Cancel(reply.ticket))
        if running:
            self.loop.settle()
