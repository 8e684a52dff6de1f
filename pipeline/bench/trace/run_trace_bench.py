"""run_trace_bench: replay a trace for each budget, in front of a user."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence

from rich.console import Console

from kvfold.pipeline.bench.describe_machine import describe_machine
from kvfold.pipeline.bench.describe_plan import describe_plan
from kvfold.pipeline.bench.trace.drive_scheduler import Drive, Script
from kvfold.pipeline.bench.trace.ideal_caches import (
    FoldedCosts,
    IdealFolded,
    IdealUnfolded,
    PagePath,
    hit_rate,
    path_of,
    unfolded_hit_rate,
)
from kvfold.pipeline.bench.trace.trace_file import read_trace_file
from kvfold.pipeline.bench.trace.trace_results import BudgetResult, TraceResult
from kvfold.pipeline.bench.trace.trace_settings import TraceSettings
from kvfold.pipeline.bench.trace.trace_turns import Turns, turns_of
from kvfold.pipeline.show.watch import Work, open_watch
from kvfold.plugins.contract.attention_shape import AttentionShape
from kvfold.plugins.contract.byte_sizes import format_bytes
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.progress import Progress
from kvfold.runtime.runtime_config import RuntimeConfig


def run_trace_bench(
    plan: FoldPlan, shape: AttentionShape, settings: TraceSettings, console: Console
) -> TraceResult:
    """Hit rates of a plan's cache, and of ideal ones.

    Args:
        plan: what is cached.
        shape: of the model before it was folded.
        settings: what is replayed, and how.
        console: for progress.

    Raises:
        RequestError: the trace is none, or an option is out of range.
        CapacityError: a budget does not hold a step.
    """
    machine = describe_machine()
    with open_watch(console) as watch:
        with watch.work(Work("trace", "reading it; what endless caches would have")) as progress:
            turns = turns_of(list(read_trace_file(settings.trace, settings.requests)), settings)
            paths = []
            for number, turn in enumerate(turns.turns):
                progress(number / len(turns.turns))
                paths.append(path_of(turn, plan.page_size))
            endless = hit_rate(IdealUnfolded(1, None), paths, plan.page_size)
            endless_ideal = hit_rate(IdealFolded(FoldedCosts.of(plan), None), paths, plan.page_size)
        budgets = []
        for number, budget in enumerate(settings.budgets, 1):
            doing = f"replaying {len(turns.turns):,} requests"
            work = Work(format_bytes(budget), doing, f"{number} of {len(settings.budgets)}")
            with watch.work(work) as progress:
                drive = _replay(plan, settings, turns, budget, progress)
                budgets.append(_result(plan, shape, paths, budget, drive))
    return TraceResult(
        command=shlex.join(["kvfold", *sys.argv[1:]]),
        machine=machine,
        trace=settings.trace.name,
        plan=describe_plan(plan),
        unfolded_token_bytes=shape.kv_bytes(1),
        requests=len(turns.turns),
        prompt_tokens=turns.prompt_tokens,
        continued=turns.continued,
        block_tokens=settings.block_tokens,
        ends=settings.ends,
        at_once=settings.at_once,
        step_tokens=settings.step_tokens,
        context=settings.context_length,
        endless=endless,
        endless_ideal=endless_ideal,
        budgets=tuple(budgets),
    )


def _replay(plan: FoldPlan, settings: TraceSettings, turns: Turns, budget: int, progress: Progress) -> Drive:
    config = RuntimeConfig(
        kv_cache_bytes=budget,
        max_num_batched_tokens=settings.step_tokens,
        max_num_seqs=settings.at_once,
    )
    drive = Drive(plan, config, turns.vocab_size, settings.context_length)
    total, begun = turns.prompt_tokens, 0

    def submitted(tokens: int) -> None:
        nonlocal begun
        progress(begun / total)
        begun += tokens

    drive.run(scripts_of(turns), submitted)
    return drive


def scripts_of(turns: Turns) -> Iterator[Script]:
    """What is read and replied, turn by turn."""
    for turn in turns.turns:
        tokens = turn.tokens
        yield Script(tokens[: turn.prompt_length], tokens[turn.prompt_length :])


def _result(
    plan: FoldPlan, shape: AttentionShape, paths: Sequence[PagePath], budget: int, drive: Drive
) -> BudgetResult:
    found = drive.scheduler.metrics
    size = plan.page_size
    total = sum(path.prompt_length for path in paths)
    return BudgetResult(
        bytes=budget,
        hit_rate=found.hit_tokens / total,
        ideal=hit_rate(IdealFolded(FoldedCosts.of(plan), budget), paths, size),
        unfolded=unfolded_hit_rate(shape, budget, paths, size),
        too_short=found.too_short_tokens / total,
        recomputed=found.recomputed_tokens / total,
        preemptions=found.preemptions,
        refused=drive.refused,
        steps=drive.cost.steps,
        step_microseconds=drive.cost.microseconds,
        reading_microseconds=drive.reading.microseconds,
    )
