"""TraceSettings: how a trace is replayed. The command line reads its defaults from here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from kvfold.pipeline.bench.trace.trace_file import BLOCK_TOKENS
from kvfold.plugins.contract.errors import RequestError

Ends = Literal["chat", "whole", "recorded"]
ENDS: tuple[Ends, ...] = get_args(Ends)
CONTEXT_BLOCKS = 256  # 131,072 tokens of the trace
MIB = 1 << 20


@dataclass(frozen=True)
class TraceSettings:
    """How a trace is replayed.

    Attributes:
        trace: the file, in Mooncake's form.
        requests: how many of its first requests; None for all.
        budgets: bytes of KV memory; each is a replay of its own.
        block_tokens: tokens that a block of 512 becomes; lengths shrink with it. 512 leaves them.
        ends: what becomes of prompts' ends and of replies, which a trace does not name. `chat`: both are what
            the conversation's next request reads. `whole`: prompts are cut to whole blocks, replies left out.
            `recorded`: prompts end in blocks that no later request has; replies left out.
        at_once: requests that run at once, in the order of the trace; their times are not kept.
        step_tokens: tokens a step computes at most.
        context: tokens of the longest sequence; None for 256 blocks. It may be longer than the model's.
        json: where the result goes; None for nowhere.
    """

    trace: Path
    requests: int | None = None
    budgets: tuple[int, ...] = (64 * MIB, 256 * MIB, 1024 * MIB)
    block_tokens: int = 32
    ends: Ends = "chat"
    at_once: int = 8
    step_tokens: int = 512
    context: int | None = None
    json: Path | None = None

    def __post_init__(self) -> None:
        """Refuse block sizes that do not divide the trace's; raises RequestError."""
        if self.block_tokens < 1 or BLOCK_TOKENS % self.block_tokens:
            raise RequestError(
                f"block_tokens is {self.block_tokens}, which does not divide {BLOCK_TOKENS}; use 32, or 512"
            )

    @property
    def scale(self) -> int:
        """How many times shorter prompts and replies are than in the trace."""
        return BLOCK_TOKENS // self.block_tokens

    @property
    def context_length(self) -> int:
        """Tokens of the longest sequence."""
        return CONTEXT_BLOCKS * self.block_tokens if self.context is None else self.context
