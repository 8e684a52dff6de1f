"""Who may ask the loop for what, when it is done, and what an error costs."""

from __future__ import annotations

import threading
from itertools import pairwise
from time import sleep

import numpy as np
import pytest

from kvfold.plugins.contract.errors import EngineError
from kvfold.runtime.engine.protocol import StepInputs
from kvfold.runtime.loop.commands import Cancel, Close
from kvfold.runtime.loop.core import Outcome, Turn
from kvfold.runtime.loop.pace import Pace
from kvfold.runtime.loop.ticket import Ticket, Unread
from kvfold.runtime.sampling.logprobs import TokenLogprob
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.sampling.sampling_state import SamplingState
from kvfold.runtime.scheduler.request import Prompt, Request
from tests.runtime.harness import PLANS
from tests.runtime.loop.loop_harness import PLAN, check, make_loop, make_state, make_ticket, run_all
from tests.runtime.synthetic_engine import SyntheticEngine, expected_tokens


def test_a_turn_says_what_it_came_to() -> None:
    loop = make_loop()
    assert loop.turn() == Turn(Outcome.IDLE, ())
    ticket = make_ticket(loop, [1, 2, 3], count=2)
    loop.submit(ticket)
    assert loop.turn() == Turn(Outcome.COMMITTED, (ticket,)) and not ticket.ended
    assert loop.turn() == Turn(Outcome.COMMITTED, (ticket,)) and ticket.ended
    assert loop.turn() == Turn(Outcome.IDLE, ())
    assert ticket.request.completion_ids == expected_tokens(PLAN, [1, 2, 3], 2)


def test_a_prompt_of_another_tenant_is_not_found() -> None:
    engine = SyntheticEngine(PLAN)
    loop = make_loop(engine)
    prompt = list(range(90))
    reused = []
    for tenant in ("one", "two", "one", "two", ""):
        ticket = make_ticket(loop, prompt, tenant=tenant)
        loop.submit(ticket)
        run_all(loop)
        reused.append(ticket.request.reused_tokens)
        assert ticket.request.completion_ids == expected_tokens(PLAN, prompt, 8)
    assert reused == [0, 0, 80, 80, 0]
    memory = loop.core.scheduler.memory
    memory.tree.evict(lambda: False, 1)
    assert memory.tree.prefixes.nodes() == [], "nothing is left of any tenant, their roots included"


def test_priority_goes_first_and_is_preempted_last() -> None:
    loop = make_loop(SyntheticEngine(PLANS["global"], pages=11), seqs=2)
    slow = [make_ticket(loop, [seed] * 60, count=60, priority=1) for seed in (1, 2, 3)]
    urgent = make_ticket(loop, [9] * 60, count=60)
    for ticket in (*slow[:2], slow[2], urgent):
        loop.submit(ticket)
    order = []
    while not all(ticket.ended for ticket in (*slow, urgent)):
        order += [ticket for ticket in loop.turn().advanced if ticket.ended]
        check(loop)
    assert order[0] is urgent and loop.metrics().cache.preemptions > 0
    assert not urgent.request.preempted


def test_a_tenant_with_a_long_queue_does_not_starve_another() -> None:
    loop = make_loop(seqs=2)
    crowd = [make_ticket(loop, [seed] * 20, tenant="crowd") for seed in range(20)]
    single = make_ticket(loop, [77] * 20, tenant="single")
    for ticket in (*crowd, single):
        loop.submit(ticket)
    while not single.ended:
        loop.turn()
    assert sum(ticket.ended for ticket in crowd) <= 2


class Slow(SyntheticEngine):
    """Takes a millisecond a step."""

    def execute(self, step: StepInputs) -> np.ndarray:
        sleep(0.001)
        return super().execute(step)


def test_a_deadline_ends_a_request_that_waits_and_one_that_runs() -> None:
    loop = make_loop(Slow(PLAN), seqs=1)
    running = make_ticket(loop, [1] * 20, count=400, deadline=0.05)
    waiting = make_ticket(loop, [2] * 20, count=400, deadline=0.05)
    for ticket in (running, waiting):
        loop.submit(ticket)
    while loop.turn().outcome is Outcome.COMMITTED:
        check(loop)
    for ticket in (running, waiting):
        assert ticket.request.finish_reason == "cancelled" and ticket.cancel_reason == "deadline"
    assert loop.metrics().pools["global"].in_use == 0


def test_followers_of_a_prompt_wait_for_it_and_find_it() -> None:
    engine = SyntheticEngine(PLAN)
    loop = make_loop(engine, batched=32)
    tickets = [make_ticket(loop, list(range(90))) for _ in range(4)]
    for ticket in tickets[1:]:
        ticket.after = tickets[0]
    for ticket in tickets:
        loop.submit(ticket)
    run_all(loop)
    assert [ticket.request.reused_tokens for ticket in tickets] == [0, 80, 80, 80]
    orphan, leader = make_ticket(loop, [5] * 20), make_ticket(loop, [5] * 20)
    orphan.after = leader
    for ticket in (leader, orphan):
        loop.submit(ticket)
    loop.post(Cancel(leader))
    run_all(loop)
    assert orphan.request.finish_reason == "length", "a leader that is cancelled lets its followers go"


class Deaf:
    """A receiver that cannot take a token."""

    def push(self, token_id: int, logprob: TokenLogprob | None, ends: bool) -> bool:
        raise ValueError("deaf")

    def end(self) -> None:
        pass


def test_an_error_of_one_request_ends_that_one() -> None:
    loop = make_loop()
    well = make_ticket(loop, [1] * 20)
    ill = Ticket(Request(Prompt(np.array([2] * 20)), 8, loop.info), make_state(loop, [2] * 20, 8), Deaf())
    for ticket in (ill, well):
        loop.submit(ticket)
    run_all(loop)
    assert str(ill.error) == "deaf" and ill.cancel_reason == "error"
    assert well.request.completion_ids == expected_tokens(PLAN, [1] * 20, 8)


class Failing(SyntheticEngine):
    """Fails in its third step."""

    def execute(self, step: StepInputs) -> np.ndarray:
        if self.steps == 2:
            raise MemoryError("out of memory")
        return super().execute(step)


def test_an_error_of_the_engine_ends_all_and_refuses_new_ones() -> None:
    loop = make_loop(Failing(PLAN), seqs=1)
    running, waiting, held = (make_ticket(loop, [seed] * 20) for seed in range(3))
    held.after = waiting
    for ticket in (running, waiting, held):
        loop.submit(ticket)
    assert [loop.turn().outcome for _ in range(3)][-1] is Outcome.FAILED
    for ticket in (running, waiting, held):
        assert isinstance(ticket.error, EngineError) and ticket.cancel_reason == "error"
    with pytest.raises(EngineError, match="out of memory"):
        loop.submit(make_ticket(loop, [1]))
    check(loop)
    assert not loop.core.scheduler.has_work


def test_a_broken_law_lets_nobody_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = make_loop()
    ticket = make_ticket(loop, [1] * 20)
    monkeypatch.setattr(loop.core.scheduler, "schedule", lambda most: 1 // 0)
    loop.submit(ticket)
    loop.start(lambda turn: None)
    while not ticket.ended:
        loop.advance(lambda: ticket.ended)
    loop.close()
    assert isinstance(ticket.error, EngineError) and isinstance(loop.failure, EngineError)


def test_a_law_that_breaks_in_a_command_to_an_idle_loop_lets_nobody_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, told = make_loop(), threading.Event()
    ticket = make_ticket(loop, [1] * 20)
    monkeypatch.setattr(loop.core.scheduler, "submit", lambda request: 1 // 0)
    loop.start(lambda turn: told.set())
    sleep(0.05)  # it waits for a command
    loop.submit(ticket)
    assert told.wait(10) and isinstance(ticket.error, EngineError) and isinstance(loop.failure, EngineError)
    loop.close()


class BrokenGrammar:
    """A constraint that fails in a way that nobody foresaw."""

    finished = False

    def fill_mask(self, mask: np.ndarray) -> None:
        raise ZeroDivisionError("of a grammar")

    def accept(self, token_id: int) -> None: ...

    def rollback(self, count: int) -> None: ...


def test_an_error_in_sampling_that_is_no_requests_own_ends_all() -> None:
    loop = make_loop()
    well = make_ticket(loop, [1] * 20)
    request = Request(Prompt(np.array([2] * 20)), 8, loop.info)
    params = SamplingParams(temperature=1.0)  # a greedy reply may need no mask
    state = SamplingState(params, np.array([2] * 20), (), loop.info.vocab_size, BrokenGrammar())
    ill = Ticket(request, state)
    for ticket in (ill, well):
        loop.submit(ticket)
    assert loop.turn().outcome is Outcome.FAILED
    assert isinstance(well.error, EngineError) and isinstance(ill.error, EngineError)
    check(loop)


def test_a_loop_of_its_own_thread_serves_many_and_ends() -> None:
    loop = make_loop()
    delivered: list[Ticket] = []
    loop.start(lambda turn: delivered.extend(ticket for ticket in turn.advanced if ticket.ended))
    tickets = [make_ticket(loop, [seed] * 30) for seed in range(12)]
    threads = [threading.Thread(target=loop.submit, args=(ticket,)) for ticket in tickets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ticket in tickets:
        while not ticket.ended:
            loop.advance(lambda ticket=ticket: ticket.ended)  # type: ignore[misc]
    loop.close()
    assert sorted(ticket.id for ticket in delivered) == sorted(ticket.id for ticket in tickets)
    for seed, ticket in enumerate(tickets):
        assert ticket.request.completion_ids == expected_tokens(PLAN, [seed] * 30, 8)
    check(loop)
    assert "kvfold engine" not in {thread.name for thread in threading.enumerate()}


class Counting(Unread):
    """How often it was told of the end."""

    ends = 0

    def end(self) -> None:
        self.ends += 1


@pytest.mark.parametrize("count", [0, 3])
def test_who_cannot_read_logits_is_told_of_the_end_once(count: int) -> None:
    def fail(first: int, logits: np.ndarray) -> None:
        raise ValueError("cannot read")

    loop, receiver = make_loop(), Counting()
    request = Request(Prompt(np.array([1] * 20), logits_from=0), count, loop.info)
    state = make_state(loop, [1] * 20, count) if count else None
    ticket = Ticket(request, state, receiver, logits_sink=fail)
    loop.submit(ticket)
    run_all(loop)
    assert str(ticket.error) == "cannot read" and receiver.ends == 1
    check(loop)


def test_who_waits_as_the_thread_ends_goes_on_alone() -> None:
    loop = make_loop()
    loop.start(lambda turn: None)
    ticket = make_ticket(loop, [1] * 20)
    loop.post(Close())
    loop.submit(ticket)
    while not ticket.ended:
        loop.advance(lambda: ticket.ended)
    assert ticket.request.completion_ids == expected_tokens(PLAN, [1] * 20, 8)


def test_a_clock_that_stands_still_is_no_pace() -> None:
    pace = Pace(0.1)
    pace.note(prefill=0, decode=4, seconds=0.0)
    pace.note(prefill=64, decode=4, seconds=0.0)
    assert (pace.prefill_rate, pace.decode_rate, pace.most_prefill(4)) == (0.0, 0.0, None)


def test_an_id_tells_nothing_of_how_many_others_there_are() -> None:
    loop = make_loop()
    ids = [make_ticket(loop, [1]).id for _ in range(20)]
    gaps = [after - before for before, after in pairwise(sorted(ids))]
    assert ids != sorted(ids) and min(gaps) > 2**20
