"""Request: one prompt on its way to a reply, as the scheduler sees it: tokens, pages and when it ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.engine.protocol import EngineInfo
from kvfold.runtime.memory.kv_memory import Prefix
from kvfold.runtime.memory.paged_sequence import PagedSequence
from kvfold.runtime.metrics import PrefixMatch

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Prompt:
    """What a request reads.

    Attributes:
        token_ids: int64.
        shared_length: leading tokens that other prompts share (a system prompt); 0 is none.
        borders: where other prompts may part from it, in tokens.
        kept: the sequence that the conversation's last turn left, to go on from where the prompt begins
            with exactly its tokens; else it is given back. Only the scheduler looks into it.
        logits_from: first position whose logits are wanted, which no hit may then pass; None: the last one.
        tenant: whose cached prefixes it may use; the others' are as if they were not there.
    """

    token_ids: np.ndarray
    shared_length: int = 0
    borders: tuple[int, ...] = ()
    kept: PagedSequence | None = None
    logits_from: int | None = None
    tenant: str = ""


class Request:
    """State of one request; the scheduler owns it from submission to its end.

    Attributes:
        tokens: int64, the prompt, then the reply, with room for all that may come; behind what is known, the
            `drawn_id` of a token that is being drawn.
        prompt_length: tokens of the prompt.
        length: tokens known so far.
        end_tokens: tokens that end the reply.
        finish_reason: why it ended; None while it has not.
        match: what the cache had of the prompt; None before it was admitted.
        prefilled_tokens: prompt tokens that were computed.
        recomputed_tokens: computed a second time after a preemption.
    """

    def __init__(
        self,
        prompt: Prompt,
        max_tokens: int,
        info: EngineInfo,
        *,
        end_tokens: frozenset[int] = frozenset(),
        keep: bool = False,
        priority: int = 0,
    ) -> None:
        """A request that was not submitted yet.

        Args:
            prompt: what to continue.
            max_tokens: tokens of the reply at most; 0 only reads the prompt.
            info: of the engine it will run on.
            end_tokens: tokens that end the reply.
            keep: keep the sequence's pages after the end, for the conversation's next turn.
            priority: lower goes first.

        Raises:
            RequestError: empty or too long prompt, or a token id out of range.
        """
        ids = prompt.token_ids
        check_prompt(ids, max_tokens, info)
        self.prompt_length = self.length = len(ids)
        self.tokens = np.zeros(min(len(ids) + max_tokens, info.max_context_length), np.int64)
        self.tokens[: len(ids)] = ids
        self.prefix = Prefix(len(ids), min(prompt.shared_length, len(ids) - 1), prompt.borders, prompt.tenant)
        self.kept = prompt.kept
        self.keep = keep
        self.priority = priority
        self.sequence: PagedSequence | None = None
        self.finish_reason: FinishReason | None = None
        self.overtaken = 0
        self.preempted = False
        self.match: PrefixMatch | None = None
        self.prefilled_tokens = 0
        self.recomputed_tokens = 0
        self.end_tokens = end_tokens
        self._logits_from = len(ids) - 1 if prompt.logits_from is None else prompt.logits_from
        self._computed = 0

    @property
    def reused_tokens(self) -> int | None:
        """Prompt tokens that came from the cache; None before it was admitted."""
        return None if self.match is None else self.match.hit_tokens

    @property
    def num_completion_tokens(self) -> int:
        """Tokens generated so far."""
        return self.length - self.prompt_length

    @property
    def completion_ids(self) -> list[int]:
        """Tokens generated so far, an end-of-sequence token included."""
        ids: list[int] = self.tokens[self.prompt_length : self.length].tolist()
        return ids

    @property
    def first_wanted(self) -> int:
        """First position whose logits are still wanted; what comes before may be taken from the cache."""
        return min(self.length - 1, max(self._logits_from, self._computed))

    @property
    def replies(self) -> bool:
        """Whether its prompt was computed, so that its next tokens are the reply's."""
        return self._computed >= self.prompt_length

    @property
    def ends_next(self) -> bool:
        """Whether a token is being drawn, and is its last: what is known was computed, and one may come."""
        return self._computed == self.length == len(self.tokens) - 1

    @property
    def generates(self) -> bool:
        """Whether it has a reply, rather than a prompt to read only."""
        return len(self.tokens) > self.prompt_length

    def begin_at(self, match: PrefixMatch) -> None:
        """Note where computing starts: at a hit, or anew after a preemption."""
        if self.match is None:
            self.match = match
            self._computed = match.hit_tokens

    def count_chunk(self, start: int, end: int) -> int:
        """Count the tokens [start, end) as computed; returns how many of them were so before."""
        if start >= self._computed and start >= self.prompt_length:
            self._computed = end
            return 0
        again = max(0, min(end, self._computed) - start)
        self.prefilled_tokens += max(0, min(end, self.prompt_length) - max(start, self._computed))
        self._computed = max(self._computed, end)
        self.recomputed_tokens += again
        return again

    def expect(self, drawn: int) -> None:
        """Its next token is being drawn: until it is appended, steps read this id in its place."""
        self.tokens[self.length] = drawn

    def append(self, token: int, stops: bool) -> None:
        """Add a token of the reply and see whether the reply ends with it, as it does where it `stops`."""
        self.tokens[self.length] = token
        self.length += 1
        if stops or token in self.end_tokens:
            self.finish_reason = "stop"
        elif self.length == len(self.tokens):
            self.finish_reason = "length"


def check_prompt(ids: np.ndarray, max_tokens: int, info: EngineInfo) -> None:
    """Refuse a prompt that the engine cannot continue; raises RequestError."""
    if len(ids) == 0:
        raise RequestError("the prompt has no tokens; give it some text")
    if len(ids) + min(max_tokens, 1) > info.max_context_length:
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
