"""A server that is started again in the middle of a trace, over a tier that is endless and takes no time.

`python -m tests.pipeline.bench.trace.test_restarted_trace BUNDLE TRACE 3000 64MiB,256MiB,1GiB` tells what the
second half finds, with the restart and without.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from concurrent.futures import Future
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from kvfold.pipeline.bench.trace.drive_scheduler import Drive
from kvfold.pipeline.bench.trace.run_trace_bench import scripts_of
from kvfold.pipeline.bench.trace.trace_file import read_trace_file
from kvfold.pipeline.bench.trace.trace_settings import TraceSettings
from kvfold.pipeline.bench.trace.trace_turns import Turns, turns_of
from kvfold.plugins.contract.byte_sizes import format_bytes, parse_bytes
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.bundle import open_bundle
from kvfold.runtime.memory.tiers.chain import Chain
from kvfold.runtime.memory.tiers.layout import TierLayout
from kvfold.runtime.memory.tiers.object_tier import HostTier
from kvfold.runtime.memory.tiers.prefix import LoadedPrefix, TierLimits, Wanted
from kvfold.runtime.runtime_config import RuntimeConfig
from tests.pipeline.bench.trace.made_up_traces import GLOBAL, WINDOWED, chat_requests, write_requests


class KnownPrefixes(HostTier):
    """What it was given, without its bytes: found by the tiers' own keys, and there at once."""

    def __init__(self, plan: FoldPlan) -> None:
        layout = TierLayout.of(plan)
        super().__init__(layout, layout.root_key("model", "kernels"), TierLimits(1))
        self._nothing = {group.name: np.empty((0, 0), np.uint8) for group in plan.groups}

    def store(self, chain: Chain, tokens: np.ndarray, wanted: Wanted, rows: Mapping[str, np.ndarray]) -> None:
        for name in self._names(chain, tokens, wanted):
            self._index.add(name, 1, 0.0)

    def load(
        self, chain: Chain, tokens: np.ndarray, pages: int, have: int = 0
    ) -> Future[LoadedPrefix | None]:
        found: Future[LoadedPrefix | None] = Future()
        found.set_result(LoadedPrefix(pages, self._nothing))
        return found


def second_half(
    plan: FoldPlan, settings: TraceSettings, turns: Turns, budget: int, *, restart: bool
) -> tuple[float, int]:
    """The hit rate of a trace's second half, and how many of its tokens came from the tier."""
    config = RuntimeConfig(
        kv_cache_bytes=budget,
        max_num_batched_tokens=settings.step_tokens,
        max_num_seqs=settings.at_once,
    )
    tier, scripts, half = KnownPrefixes(plan), scripts_of(turns), len(turns.turns) // 2

    def start() -> Drive:
        return Drive(plan, config, turns.vocab_size, settings.context_length, tier)

    drive = start()
    drive.run(islice(scripts, half))
    if restart:
        drive = start()
    before = drive.scheduler.metrics.hit_tokens, drive.scheduler.metrics.loaded_tokens
    drive.run(scripts)
    found = drive.scheduler.metrics
    asked = sum(turn.prompt_length for turn in turns.turns[half:])
    tier.close()
    return (found.hit_tokens - before[0]) / asked, found.loaded_tokens - before[1]


@pytest.mark.parametrize("plan", [GLOBAL, WINDOWED], ids=["global", "windowed"])
@pytest.mark.parametrize("budget", [1 << 20, 16 << 20], ids=["scarce", "plenty"])
def test_a_restart_costs_chats_a_point_of_hit_rate_at_most(
    plan: FoldPlan, budget: int, tmp_path: Path
) -> None:
    path = write_requests(tmp_path / "trace.jsonl", chat_requests(7, 600))
    settings = TraceSettings(path, at_once=2)
    turns = turns_of(list(read_trace_file(path, None)), settings)
    (without, _), (after, loaded) = (
        second_half(plan, settings, turns, budget, restart=restart) for restart in (False, True)
    )
    assert after > without - 0.01 and without > 0.2
    assert loaded > 0, "what was known before came from the tier"


def main(bundle: Path, trace: Path, requests: int, budgets: str) -> None:
    """A line a budget."""
    plan, settings = open_bundle(bundle).plan, TraceSettings(trace, requests)
    turns = turns_of(list(read_trace_file(trace, requests)), settings)
    for budget in map(parse_bytes, budgets.split(",")):
        (without, _), (after, loaded) = (
            second_half(plan, settings, turns, budget, restart=restart) for restart in (False, True)
        )
        print(
            f"{format_bytes(budget)}: second half {without:.2%} without a restart, {after:.2%} after one, "
            f"{loaded:,} tokens from the tier",
            flush=True,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
