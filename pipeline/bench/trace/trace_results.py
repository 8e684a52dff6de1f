"""What a replay found: hit rates by bytes of KV memory, beside those of ideal caches."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from kvfold.pipeline.bench.describe_machine import Machine
from kvfold.pipeline.bench.trace.trace_settings import Ends


@dataclass(frozen=True)
class BudgetResult:
    """One replay. Rates are shares of all prompts' tokens.

    Attributes:
        bytes: of KV memory.
        hit_rate: of the real scheduler: tokens that were not computed.
        ideal: of `IdealFolded` in the same bytes.
        unfolded: `unfolded_hit_rate` in the same bytes.
        too_short: matched in the tree and computed all the same, since the windows' tails were gone.
        recomputed: computed a second time after a preemption.
        preemptions: requests that gave up their pages to an older one.
        refused: requests that could never run in so few bytes; their tokens count as computed.
        steps: that an engine would have run.
        step_microseconds: CPU of the scheduler, its memory and the packing of a step's inputs; a mean.
        reading_microseconds: of the steps with tokens of prompts in them.
    """

    bytes: int
    hit_rate: float
    ideal: float
    unfolded: float
    too_short: float
    recomputed: float
    preemptions: int
    refused: int
    steps: int
    step_microseconds: float
    reading_microseconds: float


@dataclass(frozen=True)
class TraceResult:
    """One run.

    Attributes:
        command: what was typed.
        machine: where, and how busy it was.
        trace: the file's name.
        plan: what the cache holds.
        unfolded_token_bytes: of the unfolded model's bf16 cache.
        requests: that were replayed.
        prompt_tokens: of them.
        continued: requests that a later one goes on from.
        block_tokens: as in TraceSettings; so are the next ones.
        ends: what became of prompts' ends and of replies.
        at_once: requests that ran at once.
        step_tokens: of a step at most.
        context: tokens of the longest sequence.
        endless: share of the prompts' tokens that stood in an earlier prompt or reply, page by page.
        endless_ideal: of `IdealFolded` without a limit.
        budgets: a replay each.
    """

    command: str
    machine: Machine
    trace: str
    plan: str
    unfolded_token_bytes: int
    requests: int
    prompt_tokens: int
    continued: int
    block_tokens: int
    ends: Ends
    at_once: int
    step_tokens: int
    context: int
    endless: float
    endless_ideal: float
    budgets: tuple[BudgetResult, ...]

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")
