"""A trace through the real scheduler: hits that are known beforehand, and every token counted once."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from kvfold.pipeline.bench.trace.drive_scheduler import Drive, Script, StepCost
from kvfold.pipeline.bench.trace.run_trace_bench import run_trace_bench
from kvfold.pipeline.bench.trace.trace_file import TraceRequest
from kvfold.pipeline.bench.trace.trace_results import TraceResult
from kvfold.pipeline.bench.trace.trace_settings import TraceSettings
from kvfold.plugins.contract.errors import CapacityError
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.runtime_config import RuntimeConfig
from tests.pipeline.bench.trace.made_up_traces import (
    GLOBAL,
    SHAPE,
    WINDOWED,
    random_requests,
    request,
    write_requests,
)

BUDGET = 4 << 20


def replay(
    folder: Path, requests: Sequence[TraceRequest], plan: FoldPlan = WINDOWED, **options: Any
) -> TraceResult:
    path = write_requests(folder / "trace.jsonl", requests)
    settings = replace(TraceSettings(path, budgets=(BUDGET,), at_once=1), **options)
    return run_trace_bench(plan, SHAPE, settings, Console(file=io.StringIO()))


@pytest.mark.parametrize("plan", [GLOBAL, WINDOWED], ids=["global", "windowed"])
def test_a_prompt_that_comes_again_is_found_but_for_its_last_page(plan: FoldPlan, tmp_path: Path) -> None:
    twice = [request(1024, [1, 2]), request(1024, [1, 2])]
    (found,) = replay(tmp_path, twice, plan, ends="whole").budgets
    assert found.hit_rate == found.ideal == found.unfolded == 48 / 128


def test_a_chat_is_found_up_to_its_reply_s_end(tmp_path: Path) -> None:
    chat = [request(1024, [1, 2], reply=512), request(2048, [1, 2, 3, 4])]
    result = replay(tmp_path, chat)
    (found,) = result.budgets
    assert result.continued == 1
    assert found.hit_rate == 80 / 192, "of 96 tokens the last was never computed, and whole pages are shared"
    assert found.ideal == found.unfolded == 96 / 192


def test_prompts_that_share_nothing_find_nothing(tmp_path: Path) -> None:
    apart = [request(1024, [index, index + 100]) for index in range(20)]
    result = replay(tmp_path, apart)
    assert (result.endless, result.continued) == (0, 0)
    assert (result.budgets[0].hit_rate, result.budgets[0].ideal, result.budgets[0].unfolded) == (0, 0, 0)


def test_bytes_that_hold_one_conversation_do_not_hold_another_beside_it(tmp_path: Path) -> None:
    back_and_forth = [request(2048, [index % 2, 2, 3, 4]) for index in range(10)]
    one = GLOBAL.kv_bytes(2048)
    (scarce, plenty) = replay(
        tmp_path, back_and_forth, GLOBAL, ends="whole", block_tokens=512, context=2048, budgets=(one, 3 * one)
    ).budgets
    assert scarce.hit_rate == scarce.ideal == scarce.unfolded == 0
    assert plenty.hit_rate == plenty.ideal == plenty.unfolded == 8 * 2032 / 20480


@pytest.mark.parametrize("at_once", [1, 3])
def test_every_token_of_the_trace_is_asked_for_once(at_once: int, tmp_path: Path) -> None:
    requests = random_requests(3, 60)
    result = replay(tmp_path, requests, at_once=at_once, block_tokens=64)
    (found,) = result.budgets
    assert result.prompt_tokens == sum(max(1, each.input_length // 8) for each in requests)
    assert result.requests == 60
    assert 0 < found.hit_rate <= result.endless
    assert found.refused == 0
    assert found.step_microseconds > 0


def test_what_can_never_run_counts_as_not_found() -> None:
    config = RuntimeConfig(kv_cache_bytes=GLOBAL.kv_bytes(4096), max_num_seqs=2)
    drive = Drive(GLOBAL, config, vocab_size=1 << 20, context_length=1 << 14)
    lengths = [40, 9000, 50]
    told: list[int] = []
    drive.run((Script(np.arange(n), np.arange(3)) for n in lengths), told.append)
    assert told == lengths
    assert (drive.refused, drive.refused_tokens) == (1, 9000)
    assert drive.scheduler.metrics.queried_tokens == 90
    drive.scheduler.memory.check_integrity(())


def test_a_budget_below_one_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match="kv_cache_bytes is 2,000"):
        replay(tmp_path, random_requests(0, 3), budgets=(2000,))


def test_steps_with_prompts_in_them_are_counted_apart() -> None:
    drive = Drive(WINDOWED, RuntimeConfig(max_num_seqs=2, max_num_batched_tokens=16), 999, 512)
    drive.run(Script(np.arange(40) + start, np.arange(5)) for start in (0, 100))
    assert (drive.reading.steps, drive.decoding.steps) == (6, 4)
    assert drive.cost.steps == 10
    assert drive.cost.cpu_seconds == drive.reading.cpu_seconds + drive.decoding.cpu_seconds > 0
    assert StepCost(4, 2e-6).microseconds == 0.5
    assert StepCost().microseconds == 0


def test_replies_are_what_the_scripts_say() -> None:
    drive = Drive(GLOBAL, RuntimeConfig(max_num_seqs=1), 999, 512)
    prompt, reply = np.arange(20), np.arange(100, 120)
    drive.run([Script(prompt, reply), Script(np.concatenate([prompt, reply]), reply[:0])])
    assert drive.scheduler.metrics.hit_tokens == 32
