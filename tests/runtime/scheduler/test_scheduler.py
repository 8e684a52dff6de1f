"""Who runs when, what cancelling gives back, and what a step costs outside the engine."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import pytest

from kvfold.plugins.contract.errors import KvfoldError
from kvfold.runtime.engine.host_engine import HostEngine
from kvfold.runtime.engine.protocol import EngineInfo, StepInputs
from kvfold.runtime.llm.generation import Reply
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.loop.commands import Cancel
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.scheduler.next_waiting import MAX_OVERTAKEN
from kvfold.runtime.scheduler.request import Prompt
from tests.runtime.byte_tokenizer import VOCAB, ByteTokenizer
from tests.runtime.harness import PLANS, check, in_use, make_llm
from tests.runtime.synthetic_engine import SyntheticEngine, expected_tokens, make_plan
from tests.runtime.synthetic_pages import SyntheticPages


def submit(llm: LLM, prompt: list[int], count: int = 8) -> Reply:
    reply = llm.generator.prepare(Prompt(np.asarray(prompt)), SamplingParams(max_tokens=count))
    llm.generator.loop.submit(reply.ticket)
    llm.generator.loop.settle()
    return reply


def cancel(llm: LLM, reply: Reply) -> None:
    llm.generator.loop.post(Cancel(reply.ticket))
    llm.generator.loop.settle()


def run_all(llm: LLM) -> None:
    while llm.generator.loop.core.scheduler.has_work:
        llm.generator.loop.turn()


@pytest.mark.parametrize("name", PLANS)
def test_cancelling_gives_everything_back_at_any_step(name: str) -> None:
    for steps in range(12):
        llm, _ = make_llm(PLANS[name], batched=16, seqs=2)
        replies = [submit(llm, [seed] * 50) for seed in range(3)]
        for _ in range(steps):
            llm.generator.loop.turn()
        for reply in replies:
            cancel(llm, reply)
            cancel(llm, reply)
            check(llm)
        assert in_use(llm) == 0
        assert not llm.generator.loop.core.scheduler.has_work
        unfinished = [reply for reply in replies if reply.ticket.request.finish_reason == "cancelled"]
        assert unfinished and unfinished[-1].completion().finish_reason == "cancelled"


def test_a_step_never_exceeds_its_budget_and_decodes_beside_a_prefill() -> None:
    llm, engine = make_llm(PLANS["hybrid"], batched=20)
    short = submit(llm, [1] * 5, count=30)
    llm.generator.loop.turn()
    submit(llm, [2] * 200)
    while llm.generator.loop.core.scheduler.has_work:
        before, length = engine.tokens_computed, short.ticket.request.length
        llm.generator.loop.turn()
        assert engine.tokens_computed - before <= 20
        assert short.finished or short.ticket.request.length == length + 1


def test_no_more_requests_run_than_allowed() -> None:
    llm, engine = make_llm(PLANS["hybrid"], seqs=2)
    for seed in range(5):
        submit(llm, [seed] * 20)
    run_all(llm)
    assert engine.largest_batch == 2


def test_the_longest_cached_prefix_goes_first() -> None:
    llm, _ = make_llm(PLANS["global"], seqs=1)
    llm.generate([list(range(100))])
    cold, warm = submit(llm, [200] * 60), submit(llm, [*range(80), 9])
    while not warm.finished:
        llm.generator.loop.turn()
    assert cold.ticket.request.sequence is None and not cold.finished
    run_all(llm)
    assert cold.finished


def test_an_old_request_is_overtaken_only_so_often() -> None:
    llm, _ = make_llm(PLANS["global"], seqs=1)
    llm.generate([list(range(100))])
    cold = submit(llm, [200] * 60, count=1)
    finished_before = 0
    for number in range(2 * MAX_OVERTAKEN):
        submit(llm, [*range(80), number], count=1)
    while not cold.finished:
        llm.generator.loop.turn()
        finished_before += 1
    assert finished_before - 1 == MAX_OVERTAKEN
    run_all(llm)


def test_a_request_that_is_not_let_in_overtakes_nobody() -> None:
    llm, _ = make_llm(PLANS["global"], pages=12)
    running = submit(llm, [7] * 165, count=11)
    for _ in range(3):
        llm.generator.loop.turn()
    cold, warm = submit(llm, [200] * 60), submit(llm, [7] * 120)
    for _ in range(6):
        llm.generator.loop.turn()
        assert warm.ticket.request.sequence is None and not running.finished
    assert cold.ticket.request.overtaken == 0
    run_all(llm)
    check(llm)


def test_an_idle_session_is_not_given_up_where_that_lets_nobody_in() -> None:
    """Three run and keep a page each in reserve: the session's three pages are one too few."""
    llm, _ = make_llm(PLANS["global"], pages=12, batched=200, seqs=5)
    with llm.session() as session:
        session.send("Hello.", SamplingParams(max_tokens=20))
        assert in_use(llm) == 3
        running = [submit(llm, [seed] * 10, count=38) for seed in range(3)]
        for _ in range(30):
            llm.generator.loop.turn()
        waiting = submit(llm, [8] * 30)
        llm.generator.loop.turn()
        assert in_use(llm) == 12 and waiting.ticket.request.sequence is None
        assert llm.metrics.cache.reclaimed_sessions == 0
        run_all(llm)
        assert waiting.finished and all(reply.finished for reply in running)
        check(llm)


def test_the_oldest_request_is_never_preempted() -> None:
    llm, _ = make_llm(PLANS["global"], pages=11, batched=64)
    replies = [submit(llm, [seed] * 60, count=100) for seed in range(3)]
    run_all(llm)
    assert llm.metrics.cache.preemptions > 0
    assert not replies[0].ticket.request.preempted
    assert all(reply.ticket.request.finish_reason == "length" for reply in replies)
    check(llm)


def test_a_request_that_was_never_submitted_can_be_cancelled() -> None:
    llm, _ = make_llm(PLANS["global"])
    other = submit(llm, [1] * 20)
    reply = llm.generator.prepare(Prompt(np.asarray([1, 2, 3])), SamplingParams())
    cancel(llm, reply)
    assert reply.ticket.request.finish_reason == "cancelled"
    run_all(llm)
    assert other.finished


class NanEngine(SyntheticEngine):
    """From its fourth step on, every row of a token 77 is NaN."""

    def execute(self, step: StepInputs) -> np.ndarray:
        logits = super().execute(step)
        if self.steps >= 4:
            firsts = step.tables["global"].block_table[:, 0]
            broken = self.pages.caches[0][firsts, 0] == 77 + 1
            logits[broken] = np.nan
        return logits


def test_a_request_that_cannot_be_sampled_ends_alone() -> None:
    plan = PLANS["global"]
    llm = LLM(NanEngine(plan, vocab=VOCAB), ByteTokenizer(()))
    prompts = [[1] * 20, [77] * 20, [2] * 20]
    first, broken, last = (submit(llm, prompt) for prompt in prompts)
    run_all(llm)
    with pytest.raises(KvfoldError, match="not finite"):
        broken.completion()
    assert broken.ticket.request.finish_reason == "cancelled"
    for reply, prompt in ((first, prompts[0]), (last, prompts[2])):
        assert reply.ticket.request.completion_ids == expected_tokens(plan, prompt, 8, VOCAB)
    assert in_use(llm) == 0
    check(llm)


class NothingEngine(HostEngine):
    """Does no work, so that all the time is the runtime's."""

    def __init__(self, context: int) -> None:
        plan = make_plan((None, 0), (1024, 4))
        pages = {group.name: context // 16 + 64 for group in plan.groups}
        super().__init__(EngineInfo(plan, 1 << 30, pages, dict.fromkeys(pages, 1), 49152, context, "nothing"))
        self.pages = SyntheticPages(self.info)
        self.logits = np.zeros((8, 49152), np.float32)
        self.logits[:, 65] = 1

    def execute(self, step: StepInputs) -> np.ndarray:
        return self.logits[: len(step.logits_indices)]


def test_a_step_costs_little_outside_the_engine() -> None:
    llm = LLM(NothingEngine(8192), ByteTokenizer(()))
    stream = llm.stream([1] * 7000, SamplingParams(max_tokens=600))
    next(stream)
    seconds = []
    for _ in range(500):
        start = perf_counter()
        next(stream)
        seconds.append(perf_counter() - start)
    # The median, as other programs run on this machine; measured 0.1 ms, the promise is 0.5 ms.
    assert np.median(seconds) < 0.5e-3
