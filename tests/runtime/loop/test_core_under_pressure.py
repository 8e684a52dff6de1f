"""What the core does when pages, memory or time run out."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

import pytest

from kvfold.plugins.contract.errors import CapacityError, EngineError
from kvfold.runtime.loop.core import Outcome, Turn
from tests.runtime.harness import PLANS
from tests.runtime.loop.loop_harness import PLAN, check, make_loop, make_ticket, run_all
from tests.runtime.synthetic_engine import SyntheticEngine, expected_tokens


def test_who_is_preempted_in_a_step_computes_nothing_in_it() -> None:
    """A newer and more urgent request needs a page after the older one was scheduled."""
    loop = make_loop(SyntheticEngine(PLANS["global"], pages=10))
    slow = make_ticket(loop, [1] * 40, count=60, priority=1)
    loop.submit(slow)
    loop.turn()
    urgent = make_ticket(loop, [2] * 45, count=60)
    loop.submit(urgent)
    run_all(loop)
    assert loop.metrics().cache.preemptions > 0
    for ticket, token, length in ((slow, 1, 40), (urgent, 2, 45)):
        expected = expected_tokens(PLANS["global"], [token] * length, 60)
        assert ticket.request.completion_ids == expected


def test_memory_that_the_device_refuses_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SyntheticEngine(PLAN)
    loop = make_loop(engine)
    well = make_ticket(loop, [1] * 40)
    loop.submit(well)
    run_all(loop)

    def refuse(group: str, slabs: Sequence[int]) -> None:
        raise CapacityError("out of memory")

    monkeypatch.setattr(engine.pages, "commit", refuse)
    ill = make_ticket(loop, [1] * 32 + [2] * 400)
    loop.submit(ill)
    assert loop.turn() == Turn(Outcome.FAILED, (ill,))
    assert isinstance(ill.error, EngineError) and loop.turn().outcome is Outcome.IDLE
    check(loop)
    assert all(pool.in_use == 0 for pool in loop.metrics().pools.values())


def test_deadlines_of_what_has_ended_are_forgotten() -> None:
    loop = make_loop()
    for seed in range(300):
        loop.submit(make_ticket(loop, [seed % 90] * 3, count=1, deadline=monotonic() + 999))
        run_all(loop)
    assert len(loop.core._deadlines) <= 257
