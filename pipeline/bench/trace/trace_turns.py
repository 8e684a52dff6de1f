"""Turns: the prompts and replies that a trace stands for, as tokens.

A trace names blocks and says nothing of replies. The tokens of a block follow from its name alone, so equal
names hold equal tokens, and different names share none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Literal, get_args

import numpy as np

from kvfold.pipeline.bench.trace.trace_file import BLOCK_TOKENS, TraceRequest

# What becomes of a prompt's end, where the trace's block is partial, and of its reply:
# `chat` goes on as the conversation's next request does; `whole` cuts the prompt to whole blocks; `trace` leaves it
# as it was recorded, another than the next request's.
Ends = Literal["chat", "whole", "trace"]
ENDS: tuple[Ends, ...] = get_args(Ends)
FULL_CONTEXT = 131_072  # of the model that the trace was recorded from


@dataclass(frozen=True)
class Turn:
    """A prompt and its reply.

    Attributes:
        blocks: numbers of the blocks that hold both.
        block_tokens: of each.
        prompt_length: tokens.
        reply_length: tokens, at least one.
    """

    blocks: tuple[int, ...]
    block_tokens: int
    prompt_length: int
    reply_length: int

    @property
    def tokens(self) -> np.ndarray:
        """Int64, the prompt's, then the reply's."""
        first = np.array(self.blocks, np.int64)[:, None] * self.block_tokens
        return (first + np.arange(self.block_tokens)).reshape(-1)[: self.prompt_length + self.reply_length]


@dataclass(frozen=True)
class Turns:
    """A trace as turns.

    Attributes:
        turns: in the trace's order.
        vocab_size: above every token.
        context_length: tokens of the longest turn that is not cut.
        continued: turns that a later one goes on from.
    """

    turns: tuple[Turn, ...]
    vocab_size: int
    context_length: int
    continued: int

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts."""
        return sum(turn.prompt_length for turn in self.turns)


def turns_of(requests: Sequence[TraceRequest], block_tokens: int, ends: Ends) -> Turns:
    """The turns of a trace whose blocks, lengths and context are scaled to blocks of `block_tokens`."""
    scale = BLOCK_TOKENS // block_tokens
    context = FULL_CONTEXT // scale
    numbers = count()
    named: defaultdict[int, int] = defaultdict(numbers.__next__)
    follow = _next_requests(requests) if ends == "chat" else [None] * len(requests)
    turns: list[Turn] = []  # the last one first, as each may go on as a later one does
    continued = 0
    for request, after in zip(reversed(requests), reversed(follow), strict=True):
        reply = min(context - 1, max(1, request.output_length // scale))
        prompt = max(1, min(context - reply, request.input_length // scale))
        if ends == "whole":
            prompt = max(block_tokens, prompt // block_tokens * block_tokens)
        later = None if after is None else turns[len(requests) - 1 - after]
        if later is not None and later.prompt_length > prompt:
            blocks = later.blocks
            continued += 1
        else:
            blocks = tuple(named[name] for name in request.hash_ids[: -(-prompt // block_tokens)])
        needed = -(-(prompt + reply) // block_tokens)
        blocks = blocks[:needed] + tuple(islice(numbers, max(0, needed - len(blocks))))
        turns.append(Turn(blocks, block_tokens, prompt, reply))
    return Turns(tuple(reversed(turns)), next(numbers) * block_tokens, context, continued)


def _next_requests(requests: Sequence[TraceRequest]) -> list[int | None]:
    """For each request the first later one whose prompt begins with all its whole blocks.

    One whole block is no conversation: it is what all of them begin with.
    """
    earliest: dict[tuple[int, ...], int] = {}
    found: list[int | None] = []
    for index in range(len(requests) - 1, -1, -1):
        request = requests[index]
        whole = request.input_length // BLOCK_TOKENS
        found.append(earliest.get(request.hash_ids[:whole][-2:]) if whole > 1 else None)
        for end in range(2, len(request.hash_ids) + 1):
            earliest[request.hash_ids[end - 2 : end]] = index
    return found[::-1]
