"""Request: one prompt on its way to a reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal, Protocol

import numpy as np

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.engine.protocol import EngineInfo
from kvfold.runtime.memory.kv_memory import Prefix
from kvfold.runtime.memory.paged_sequence import PagedSequence
from kvfold.runtime.metrics import Usage
from kvfold.runtime.sampling.batch_sampler import BatchSampler
from kvfold.runtime.sampling.logprobs import TokenLogprob
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.sampling.sampling_state import SamplingState

FinishReason = Literal["stop", "length", "cancelled"]


class TextSink(Protocol):
    """Takes a reply's tokens as they come."""

    def push(self, token_id: int) -> bool:
        """Add a token; True when a stop text is complete."""
        ...


@dataclass(frozen=True)
class Prompt:
    """A checked prompt.

    Attributes:
        token_ids: int64.
        shared_length: leading tokens that other prompts share (a system prompt); 0 is none.
        kept: the sequence of the conversation's last turn, to go on from; None starts anew.
    """

    token_ids: np.ndarray
    shared_length: int = 0
    kept: PagedSequence | None = None


class Request:
    """State of one request; the scheduler owns it from submission to its end.

    Whoever sets `stopping` asks the scheduler to end it before its next step, with the tokens it has.
    """

    def __init__(
        self,
        prompt: Prompt,
        params: SamplingParams,
        sink: TextSink,
        eos_token_ids: Sequence[int],
        info: EngineInfo,
        keep: bool = False,
    ) -> None:
        """A request that was not submitted yet.

        Args:
            prompt: what to continue.
            params: how, and until when.
            sink: gets each token but the end-of-sequence one.
            eos_token_ids: tokens that end the reply.
            info: of the engine it will run on.
            keep: keep the sequence's pages after the end, for the conversation's next turn.

        Raises:
            RequestError: empty or too long prompt, or a token id out of range.
        """
        ids = prompt.token_ids
        check_prompt(ids, info)
        self.prompt_length = self.length = len(ids)
        capacity = min(len(ids) + params.max_tokens, info.max_context_length)
        self.tokens = np.zeros(capacity, np.int64)
        self.tokens[: len(ids)] = ids
        self.params = params
        self.prefix = Prefix(len(ids), min(prompt.shared_length, len(ids) - 1))
        self.kept = prompt.kept
        self.keep = keep
        self.sequence: PagedSequence | None = None
        self.finish_reason: FinishReason | None = None
        self.stopping = False
        self.logprobs: list[TokenLogprob] = []
        self.overtaken = 0
        self.preempted = False
        self.reused_tokens: int | None = None
        self.recomputed_tokens = 0
        self._computed = 0
        self._prefilled = 0
        self._sink = sink
        self._sampler = BatchSampler(info.vocab_size)
        self._state = SamplingState(params, ids, eos_token_ids, info.vocab_size)
        self._ends = frozenset(params.stop_token_ids).union(() if params.ignore_eos else eos_token_ids)
        self._submitted = perf_counter()
        self._first_token: float | None = None
        self._last_token = self._submitted

    @property
    def num_completion_tokens(self) -> int:
        """Tokens generated so far."""
        return self.length - self.prompt_length

    @property
    def completion_ids(self) -> list[int]:
        """Tokens generated so far, an end-of-sequence token included."""
        ids: list[int] = self.tokens[self.prompt_length : self.length].tolist()
        return ids

    def start_clock(self) -> None:
        """Begin to measure the time to the first token."""
        self._submitted = self._last_token = perf_counter()

    def begin_at(self, computed: int) -> None:
        """Note where computing starts: at a hit, or anew after a preemption."""
        if self.reused_tokens is None:
            self.reused_tokens = self._computed = computed

    def count_chunk(self, start: int, end: int) -> int:
        """Count the tokens [start, end) as computed; returns how many of them were so before."""
        again = max(0, min(end, self._computed) - start)
        self._prefilled += max(0, min(end, self.prompt_length) - max(start, self._computed))
        self._computed = max(self._computed, end)
        self.recomputed_tokens += again
        return again

    def append_from(self, logits: np.ndarray) -> None:
        """Sample the next token from a row of logits and see whether the reply ends with it."""
        (sampled,) = self._sampler.sample(logits[None], [self._state])
        if sampled.error is not None:
            raise sampled.error
        token = sampled.token_id
        if sampled.logprob is not None:
            self.logprobs.append(sampled.logprob)
        self.tokens[self.length] = token
        self.length += 1
        self._last_token = perf_counter()
        if self._first_token is None:
            self._first_token = self._last_token
        if token in self._ends or self._sink.push(token):
            self.finish_reason = "stop"
        elif self.length == len(self.tokens):
            self.finish_reason = "length"

    def usage(self) -> Usage:
        """What the request cost so far."""
        tokens = self.num_completion_tokens
        first = None if self._first_token is None else self._first_token - self._submitted
        elapsed = 0.0 if self._first_token is None else self._last_token - self._first_token
        return Usage(
            prompt_tokens=self.prompt_length,
            reused_tokens=self.reused_tokens or 0,
            prefilled_tokens=self._prefilled,
            completion_tokens=tokens,
            recomputed_tokens=self.recomputed_tokens,
            time_to_first_token=first,
            tokens_per_second=(tokens - 1) / elapsed if elapsed > 0 else None,
        )


def check_prompt(ids: np.ndarray, info: EngineInfo) -> None:
    """Refuse a prompt that the engine cannot continue; raises RequestError."""
    if len(ids) == 0:
        raise RequestError("the prompt has no tokens; give it some text")
    if len(ids) >= info.max_context_length:
        raise RequestError(
            f"the prompt has {len(ids)} tokens, the context {info.max_context_length} with the reply; "
            "shorten the prompt"
        )
    wrong = np.flatnonzero((ids < 0) | (ids >= info.vocab_size))
    if len(wrong):
        at = int(wrong[0])
        raise RequestError(
            f"token id {int(ids[at])} at position {at} is not in the vocabulary [0, {info.vocab_size}); "
            "encode the prompt with this model's tokenizer"
        )
