"""Scenario `tier`: against a fake server restarts that cost, and over a synthetic engine steps that wait."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import sleep

import numpy as np
import pytest

from kvfold.pipeline.bench.serving.scenarios import pages_on_disk, written_steps
from kvfold.pipeline.bench.serving.scenarios.scenario import Bench
from kvfold.pipeline.bench.serving.servers.started_server import ServerCommand
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.memory.tiers.chain import Chain
from kvfold.runtime.memory.tiers.layout import TierLayout
from kvfold.runtime.memory.tiers.object_tier import HostTier
from kvfold.runtime.memory.tiers.prefix import TierLimits, Wanted
from tests.pipeline.bench.serving.fake_openai_server import fake_command
from tests.pipeline.bench.serving.test_serve_scenarios import FakeBench, answer, bench_of, figure, set_all
from tests.runtime.byte_tokenizer import VOCAB
from tests.runtime.harness import PLANS, make_llm


@dataclass(frozen=True)
class RestartedBench(FakeBench):
    """Servers that were started on a folder before have options of their own."""

    again: dict[str, float] = field(default_factory=dict)

    def server(
        self, at_once: int, kv_cache_bytes: int | None = None, state_dir: Path | None = None
    ) -> ServerCommand:
        if state_dir is None:
            return super().server(at_once, kv_cache_bytes)
        more = self.again if (state_dir / "used").exists() else {}
        (state_dir / "used").touch()
        return ServerCommand("kvfold fake", fake_command(**self.options, **more), "/health/ready")


class SlowTier(HostTier):
    """Takes its time to be handed over to."""

    def store(self, chain: Chain, tokens: np.ndarray, wanted: Wanted, rows: Mapping[str, np.ndarray]) -> None:
        sleep(0.03)
        super().store(chain, tokens, wanted, rows)


def load_over(kind: type[HostTier]) -> Callable[[Bench, Path], LLM]:
    layout = TierLayout.of(PLANS["hybrid"])
    tier = kind(layout, layout.root_key("m", "k"), TierLimits(1 << 24))
    return lambda bench, folder: make_llm(PLANS["hybrid"], pages=512, tier=tier)[0]


def shorten(monkeypatch: pytest.MonkeyPatch, kind: type[HostTier] = HostTier) -> None:
    set_all(monkeypatch, pages_on_disk, TALKS=2, FIRST_WORDS=40, REPLY_TOKENS=2)
    set_all(monkeypatch, written_steps, REQUESTS=6, PROMPT_TOKENS=40, LEAST_TOKENS=2, MOST_TOKENS=9)
    monkeypatch.setattr(written_steps, "load", load_over(kind))


def test_a_restart_that_costs_the_conversation_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(monkeypatch)
    bench = RestartedBench(**vars(bench_of(tmp_path, stubborn=0)), again={"delay": 0.1})
    found = answer(pages_on_disk.measure, replace(bench, vocab_size=VOCAB))
    slower = figure(found, "over from memory")
    assert slower.met is False and slower.value > 2
    assert figure(found, "from memory, computed").value == figure(found, "a restart, computed").value > 20


def test_steps_that_wait_for_the_tier_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch, SlowTier)
    found = answer(pages_on_disk.measure, replace(bench_of(tmp_path, stubborn=0), vocab_size=VOCAB))
    kept, none = (figure(found, f"p99, {key}").value for key in ("pages kept", "no pages kept"))
    added = figure(found, "p99 of")
    assert added.met is False and added.value == pytest.approx(100 * (kept - none) / none)
    assert kept > 30 > none and figure(found, "objects written").met is True


def test_a_tier_that_takes_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)
    monkeypatch.setattr(HostTier, "wanted", lambda *_: None)
    found = answer(pages_on_disk.measure, replace(bench_of(tmp_path, stubborn=0), vocab_size=VOCAB))
    assert figure(found, "objects written").met is False


def test_a_tier_is_closed_where_a_step_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)
    closed: list[HostTier] = []
    monkeypatch.setattr(HostTier, "close", lambda tier: closed.append(tier))
    monkeypatch.setattr(written_steps, "run_block", lambda *_: pytest.fail("a step"))
    with pytest.raises(pytest.fail.Exception, match="a step"):
        answer(pages_on_disk.measure, replace(bench_of(tmp_path, stubborn=0), vocab_size=VOCAB))
    assert len(closed) == 1
