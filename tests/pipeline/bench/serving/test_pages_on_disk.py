"""Scenario `tier` against a fake server: restarts that cost, and servers that are slow as they keep pages."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from kvfold.pipeline.bench.serving.scenarios import pages_on_disk
from kvfold.pipeline.bench.serving.servers.started_server import ServerCommand
from tests.pipeline.bench.serving.fake_openai_server import fake_command
from tests.pipeline.bench.serving.test_serve_scenarios import FakeBench, answer, bench_of, figure, set_all


@dataclass(frozen=True)
class RestartedBench(FakeBench):
    """Servers with a folder have options of their own, and others where they were started on it before."""

    keeps: dict[str, float] = field(default_factory=dict)
    again: dict[str, float] = field(default_factory=dict)

    def server(
        self, at_once: int, kv_cache_bytes: int | None = None, state_dir: Path | None = None
    ) -> ServerCommand:
        if state_dir is None:
            return super().server(at_once, kv_cache_bytes)
        more = self.again if (state_dir / "used").exists() else self.keeps
        (state_dir / "used").touch()
        return ServerCommand("kvfold fake", fake_command(**self.options, **more), "/health/ready")


def test_a_restart_that_costs_the_conversation_and_slow_writes_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, pages_on_disk, TALKS=2, FIRST_WORDS=40, CHATS=8, TURN_TOKENS=8, REPLY_TOKENS=2)
    bench = RestartedBench(
        **vars(bench_of(tmp_path, stubborn=0)), keeps={"delay": 0.02}, again={"delay": 0.1}
    )
    found = answer(pages_on_disk.measure, bench)
    slower = figure(found, "over from memory")
    assert slower.met is False and slower.value > 2
    assert figure(found, "from memory, computed").value == figure(found, "a restart, computed").value > 20
    added = figure(found, "what keeping adds")
    kept, none = (figure(found, f"p99, {key}").value for key in ("pages kept", "no pages kept"))
    assert added.value == pytest.approx(100 * (kept - none) / none)
    assert figure(found, "objects written").met is False, "the fake has no tier"
    slow = answer(pages_on_disk.measure, replace(bench, again={"delay": 0.1}, keeps={"delay": 0.1}))
    assert figure(slow, "over from memory").met is True
    assert figure(slow, "what keeping adds").met is False
