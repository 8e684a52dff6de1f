"""A step begins before the tokens of the one before are known: all is as where they are waited for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from time import monotonic

import numpy as np
import pytest

from kvfold.plugins.contract.errors import EngineError, KvfoldError, RequestError
from kvfold.runtime.engine.protocol import StepInputs
from kvfold.runtime.llm.generation import Completion
from kvfold.runtime.loop.commands import Cancel
from kvfold.runtime.loop.core import Outcome
from kvfold.runtime.loop.flight import Flight
from kvfold.runtime.loop.pace import Pace
from kvfold.runtime.loop.ticket import Service, Ticket
from kvfold.runtime.sampling.batch_sampler import Sampled
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.scheduler.request import Prompt
from tests.runtime.byte_tokenizer import VOCAB
from tests.runtime.harness import PLANS, check, in_use, make_llm, make_prompts
from tests.runtime.loop.deferred_engine import DeferredEngine, WaitingEngine
from tests.runtime.loop.loop_harness import PLAN, make_loop, make_ticket
from tests.runtime.loop.loop_harness import check as check_loop
from tests.runtime.synthetic_engine import SyntheticEngine, expected_tokens

# Each of the replies fits alone, all of them do not.
FEW_PAGES = {"global": 9, "hybrid": 7, "local": 5, "locals": 6, "many": 7}
STOPS = tuple(range(0, 256, 9))
ENDS = [
    SamplingParams(max_tokens=20, temperature=0.8, seed=5),
    SamplingParams(max_tokens=1),
    SamplingParams(max_tokens=40, stop_token_ids=STOPS, temperature=1.0, seed=6, logprobs=2),
    SamplingParams(max_tokens=40, stop=tuple("aeiou"), temperature=1.0, seed=7),
    SamplingParams(max_tokens=12, prompt_logprobs=1),
    SamplingParams(max_tokens=30, repetition_penalty=1.4, frequency_penalty=0.5, presence_penalty=0.5),
    SamplingParams(max_tokens=30, min_tokens=9, stop_token_ids=STOPS, temperature=1.0, seed=8),
    SamplingParams(max_tokens=30, stop_token_ids=STOPS),
]


class OnlyMultiples:
    """A grammar: five multiples of a number. A greedy reply's guess is often refused."""

    def __init__(self, of: int) -> None:
        self._of, self._said = of, 0

    def fill_mask(self, mask: np.ndarray) -> None:
        mask[:] = 0
        for token in range(0, 256, self._of):
            mask[token // 32] |= np.uint32(1 << token % 32)

    def accept(self, token_id: int) -> None:
        if token_id % self._of or token_id > 255:
            raise RequestError("it may not follow")
        self._said += 1

    def rollback(self, count: int) -> None: ...

    @property
    def finished(self) -> bool:
        return self._said >= 5


def facts(replies: Sequence[Completion]) -> list[object]:
    return [
        (each.token_ids, each.text, each.finish_reason, each.stop_text, each.logprobs, each.prompt_logprobs)
        for each in replies
    ]


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("short", [True, False])
def test_replies_are_the_same_whenever_tokens_are_known(name: str, short: bool) -> None:
    """Stops, lengths, penalties, log probabilities, also of prompts; and preemption where memory is short."""
    told = []
    pages = FEW_PAGES[name] if short else 64
    for kind in (SyntheticEngine, WaitingEngine, DeferredEngine):
        llm, engine = make_llm(PLANS[name], pages, batched=48, kind=kind)
        told.append([facts(llm.generate(make_prompts(), ENDS)) for _ in range(2)])  # cold and warm
        check(llm)
        assert in_use(llm) == 0
    assert told[0] == told[1] == told[2]
    assert isinstance(engine, DeferredEngine) and engine.ahead > engine.steps // 2
    assert not short or llm.metrics.cache.preemptions > 0
    assert {reply[2] for replies in told[0] for reply in replies} == {"stop", "length"}  # type: ignore[index]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_grammars_beside_others_are_the_same(temperature: float) -> None:
    """A greedy one guesses, so that its tokens are waited for; a drawn one has its mask before."""
    told = []
    for kind in (SyntheticEngine, DeferredEngine):
        llm, engine = make_llm(PLAN, kind=kind)
        params = SamplingParams(max_tokens=16, temperature=temperature, seed=3)
        replies = [
            llm.generator.prepare(Prompt(np.array(prompt)), params, Service(constraint=constraint))
            for prompt, constraint in zip(
                make_prompts(), [lambda: OnlyMultiples(7), None, lambda: OnlyMultiples(2), None], strict=False
            )
        ]
        told.append(facts(llm.generator.run(replies)))
    assert told[0] == told[1]
    assert isinstance(engine, DeferredEngine) and engine.ahead > 0


@pytest.mark.parametrize("stops", [True, False])
def test_what_is_computed_in_vain_is_a_token_of_a_reply_that_stops(stops: bool) -> None:
    """One that ends by its length is known to end: no step has a row for it."""
    params = SamplingParams(max_tokens=40, stop_token_ids=STOPS if stops else (), temperature=1.0, seed=1)
    computed = []
    for kind in (WaitingEngine, DeferredEngine):
        llm, engine = make_llm(PLAN, kind=kind)
        reasons = {llm.generate(prompt, params)[0].finish_reason for prompt in make_prompts()}
        assert reasons == {"stop" if stops else "length"}
        assert isinstance(engine, DeferredEngine)
        engine.finish()
        computed.append(engine.tokens_computed)
    assert computed[1] - computed[0] == (len(make_prompts()) if stops else 0)


@pytest.mark.parametrize("turns", [1, 2, 5, 9])
def test_who_leaves_gives_its_pages_back_at_once_and_changes_nothing_for_others(turns: int) -> None:
    engine = DeferredEngine(PLAN)
    loop = make_loop(engine, seqs=2)
    leaves, stays, waits = (make_ticket(loop, [seed] * 40, count=30) for seed in (1, 2, 3))
    for ticket in (leaves, stays, waits):
        loop.submit(ticket)
    for _ in range(turns):
        loop.turn()
    used = sum(pool.in_use for pool in loop.metrics().pools.values())
    loop.post(Cancel(leaves))
    loop.settle()
    assert leaves.ended and leaves.request.sequence is None, "before the next step"
    assert sum(pool.in_use for pool in loop.metrics().pools.values()) < used
    said = leaves.request.completion_ids
    while loop.turn().outcome is Outcome.COMMITTED:
        check_loop(loop)
    assert leaves.request.completion_ids == said == expected_tokens(PLAN, [1] * 40, 30)[: len(said)]
    for ticket, seed in ((stays, 2), (waits, 3)):
        assert ticket.request.completion_ids == expected_tokens(PLAN, [seed] * 40, 30)
    assert engine.collected and not loop.core.scheduler.has_work


def test_pages_of_a_step_that_is_under_way_are_hit() -> None:
    """One stream orders them: whoever reads them is behind who writes them."""
    engine = DeferredEngine(PLAN)
    loop = make_loop(engine)
    prompt = list(range(90))
    leader, follower = make_ticket(loop, prompt), make_ticket(loop, [*prompt, 7, 7])
    loop.submit(leader)
    loop.turn()
    loop.turn()
    assert engine.steps < 2, "the prompt's end is not computed yet"
    loop.submit(follower)
    while loop.turn().outcome is Outcome.COMMITTED:
        check_loop(loop)
    assert follower.request.reused_tokens == 80
    assert leader.request.completion_ids == expected_tokens(PLAN, prompt, 8)
    assert follower.request.completion_ids == expected_tokens(PLAN, [*prompt, 7, 7], 8)


@pytest.mark.parametrize("stops", [(), STOPS])
def test_sessions_go_on_from_their_own_pages(stops: tuple[int, ...]) -> None:
    told = []
    for kind in (SyntheticEngine, DeferredEngine):
        llm, _ = make_llm(PLAN, 128, kind=kind)
        params = SamplingParams(max_tokens=11, stop_token_ids=stops, temperature=0.7, seed=2)
        with llm.session("Be brief.") as session:
            turns = facts([session.send(text, params) for text in ("Hi", "And then?", "Go on. " * 9)])
            turns += [chunk.text for chunk in session.retry(params)]
        told.append((turns, llm.metrics.cache.resumed_turns, llm.metrics.cache.rematched_turns))
        check(llm)
        assert in_use(llm) == 0
    assert told[0] == told[1] and told[0][1] == (0 if stops else 2), "a reply that stops is no whole message"


class Failing(DeferredEngine):
    """Fails in a step: as it begins, or as it is computed."""

    at, early = 6, False

    def begin(self, step: StepInputs):  # type: ignore[no-untyped-def]
        if self.early and self.steps + len(self.stream) // 2 >= self.at:
            raise KvfoldError("refused")
        return super().begin(step)

    def execute(self, step: StepInputs) -> np.ndarray:
        if self.steps == self.at:
            raise MemoryError("broken")
        return super().execute(step)


@pytest.mark.parametrize("early", [True, False])
def test_a_failure_ends_all_and_what_was_drawn_before_is_told(early: bool) -> None:
    engine = Failing(PLAN)
    engine.early = early
    loop = make_loop(engine, seqs=2)
    last = make_ticket(loop, [4] * 20, count=6)  # its last token is drawn by the last step that works
    runs, waits, held = (make_ticket(loop, [seed] * 20, count=30) for seed in (1, 2, 3))
    held.after = waits
    for ticket in (last, runs, waits, held):
        loop.submit(ticket)
    outcomes: list[Outcome] = []
    while not outcomes or outcomes[-1] is Outcome.COMMITTED:
        outcomes.append(loop.turn().outcome)
    assert outcomes[-1] is Outcome.FAILED
    for ticket in (runs, waits, held):
        assert isinstance(ticket.error, EngineError) and ticket.cancel_reason == "error"
    assert last.error is None and last.request.finish_reason == "length"
    for ticket, seed in ((last, 4), (runs, 1)):
        said = ticket.request.completion_ids
        assert len(said) == 6 and said == expected_tokens(PLAN, [seed] * 20, 6)
    with pytest.raises(EngineError, match="refused" if early else "broken"):
        loop.submit(make_ticket(loop, [1]))
    check_loop(loop)
    assert loop.turn().outcome is Outcome.IDLE
    assert all(pool.in_use == 0 for pool in loop.metrics().pools.values())


class Blind(DeferredEngine):
    """A row of its eighth step has no finite logits."""

    def execute(self, step: StepInputs) -> np.ndarray:
        rows = super().execute(step)
        if self.steps == 8:
            rows[0] = np.nan
        return rows


def test_a_row_without_a_token_ends_alone() -> None:
    loop = make_loop(Blind(PLAN))
    ill, well = (make_ticket(loop, [seed] * 20, count=30) for seed in (1, 2))
    for ticket in (ill, well):
        loop.submit(ticket)
    while loop.turn().outcome is Outcome.COMMITTED:
        check_loop(loop)
    assert "not finite" in str(ill.error) and ill.request.num_completion_tokens == 7
    assert well.request.completion_ids == expected_tokens(PLAN, [2] * 20, 30)


def test_a_stream_tells_each_token_while_the_next_is_computed() -> None:
    llm, engine = make_llm(PLAN, kind=DeferredEngine)
    assert isinstance(engine, DeferredEngine)
    tokens: list[int] = []
    for chunk in llm.stream([5] * 30, SamplingParams(max_tokens=12)):
        tokens += chunk.token_ids
        assert engine.steps - len(tokens) <= 1
        assert engine.stream or len(tokens) == 12
    assert engine.ahead > 0
    assert tokens == expected_tokens(PLAN, [5] * 30, 12, VOCAB)


def test_after_idle_time_no_step_looks_hung() -> None:
    loop = make_loop(DeferredEngine(PLAN))
    loop.core._last_step -= 3600.0
    loop.submit(make_ticket(loop, [1] * 20, count=4))
    while loop.turn().outcome is Outcome.COMMITTED:
        now = loop.core.snapshot
        assert now.busy and monotonic() - now.last_step < 60


def test_a_step_under_way_is_work_even_where_nobody_waits_for_its_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kvfold.runtime.loop.core.PUBLISH_SECONDS", 0.0)
    loop = make_loop(DeferredEngine(PLAN))
    stops = make_ticket(loop, [1] * 20, count=9)
    stops.request.end_tokens = frozenset(range(256))
    loop.submit(stops)
    while not stops.ended:
        loop.turn()
    assert loop.core.snapshot.busy
    assert loop.turn().outcome is Outcome.COMMITTED and not loop.core.snapshot.busy


def test_ctrl_c_while_tokens_are_waited_for_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = make_loop(DeferredEngine(PLAN))
    tickets = [make_ticket(loop, [seed] * 20, count=12) for seed in (1, 2)]
    collect, calls = Flight.collect, 0

    def interrupted(flight: Flight) -> list[tuple[Ticket, Sampled]]:
        nonlocal calls
        calls += 1
        if calls in (3, 12):
            raise KeyboardInterrupt
        return collect(flight)

    monkeypatch.setattr(Flight, "collect", interrupted)
    for ticket in tickets:
        loop.submit(ticket)
    interrupts = 0
    while not all(ticket.ended for ticket in tickets):
        try:
            loop.turn()
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts == 2
    for ticket, seed in zip(tickets, (1, 2), strict=True):
        assert ticket.request.completion_ids == expected_tokens(PLAN, [seed] * 20, 12)


def test_the_callers_pause_is_no_steps_time(monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[float] = []
    monkeypatch.setattr(Pace, "note", lambda _, prefill, decoding, seconds: noted.append(seconds))
    loop = make_loop(DeferredEngine(PLAN))
    loop.submit(make_ticket(loop, [1] * 20, count=4))
    while loop.turn().outcome is Outcome.COMMITTED:
        time.sleep(0.2)
    assert len(noted) == 4 and max(noted) < 0.15
