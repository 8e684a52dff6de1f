"""Turns: the prompts and replies that a trace stands for, as tokens.

A trace names the blocks of its prompts, and none of its replies. Here a block's tokens follow from its number
alone, so equal names hold equal tokens, and different ones share none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, islice

import numpy as np

from kvfold.pipeline.bench.trace.trace_file import BLOCK_TOKENS, TraceRequest
from kvfold.pipeline.bench.trace.trace_settings import TraceSettings


@dataclass(frozen=True)
class Turn:
    """A prompt and its reply.

    Attributes:
        blocks: numbers of the blocks that hold both.
        block_tokens: of each.
        prompt_length: tokens.
        reply_length: tokens; 0 where the prompt is read only.
    """

    blocks: tuple[int, ...]
    block_tokens: int
    prompt_length: int
    reply_length: int

    @property
    def length(self) -> int:
        """Tokens of both."""
        return self.prompt_length + self.reply_length

    @property
    def tokens(self) -> np.ndarray:
        """Int64 [length], the prompt's, then the reply's."""
        first = np.array(self.blocks, np.int64)[:, None] * self.block_tokens
        return (first + np.arange(self.block_tokens)).reshape(-1)[: self.length]


@dataclass(frozen=True)
class Turns:
    """A trace as turns.

    Attributes:
        turns: in the trace's order.
        vocab_size: above every token.
        continued: turns that a later one goes on from.
    """

    turns: tuple[Turn, ...]
    vocab_size: int
    continued: int

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts."""
        return sum(turn.prompt_length for turn in self.turns)


def turns_of(requests: Sequence[TraceRequest], settings: TraceSettings) -> Turns:
    """What is replayed of a trace's requests."""
    size = settings.block_tokens
    numbers = count()
    numbered: defaultdict[int, int] = defaultdict(numbers.__next__)
    follow = _next_requests(requests) if settings.ends == "chat" else [None] * len(requests)
    turns: list[Turn] = []  # the last one first, as each may go on as a later one does
    continued = 0
    for request, after in zip(reversed(requests), reversed(follow), strict=True):
        prompt, reply = _lengths(request, settings)
        later = None if after is None else turns[len(requests) - 1 - after]
        if later is not None and later.prompt_length > prompt:
            blocks = later.blocks
            continued += 1
        else:
            blocks = tuple(numbered[name] for name in request.hash_ids[: -(-prompt // size)])
        needed = -(-(prompt + reply) // size)
        new = islice(numbers, max(0, needed - len(blocks)))
        turns.append(Turn((*blocks[:needed], *new), size, prompt, reply))
    return Turns(tuple(reversed(turns)), next(numbers) * size, continued)


def _lengths(request: TraceRequest, settings: TraceSettings) -> tuple[int, int]:
    """Tokens of prompt and reply, cut to what the context holds."""
    size, context = settings.block_tokens, settings.context_length
    reply = (
        min(context - 1, max(1, request.output_length // settings.scale)) if settings.ends == "chat" else 0
    )
    prompt = max(1, request.input_length // settings.scale)
    if settings.ends == "whole":
        prompt = max(size, prompt // size * size)
    return min(prompt, context - reply), reply


def _next_requests(requests: Sequence[TraceRequest]) -> list[int | None]:
    """For each request the first later one whose prompt begins with all its whole blocks.

    One whole block is no conversation: it is what most prompts begin with.
    """
    earliest: dict[int, int] = {}
    found: list[int | None] = []
    for index in range(len(requests) - 1, -1, -1):
        names = requests[index].hash_ids
        whole = requests[index].input_length // BLOCK_TOKENS
        after = earliest.get(names[whole - 1]) if whole > 1 else None
        goes_on = after is not None and requests[after].hash_ids[:whole] == names[:whole]
        found.append(after if goes_on else None)
        earliest.update((name, index) for name in names[1:])
    return found[::-1]
