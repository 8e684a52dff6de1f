"""Any sequence of submit, step, cancel, evict and session turns conserves pages and tokens."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import get_args

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvfold.runtime.llm.conversation import OnOverflow
from kvfold.runtime.llm.generation import Completion, Reply, TextChunk
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.llm.session import Session
from kvfold.runtime.loop.commands import Cancel
from kvfold.runtime.memory.tiers.layout import TierLayout
from kvfold.runtime.memory.tiers.object_tier import HostTier
from kvfold.runtime.memory.tiers.prefix import TierLimits
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.scheduler.request import Prompt
from tests.runtime.byte_tokenizer import VOCAB
from tests.runtime.harness import PLANS, check, in_use, make_llm, make_prompts
from tests.runtime.loop.deferred_engine import DeferredEngine
from tests.runtime.synthetic_engine import SyntheticEngine, expected_tokens

PROMPTS = make_prompts(seed=1)


class Operations(RuleBasedStateMachine):
    """A small pool, so that queueing, eviction, preemption and reclaiming all happen."""

    sessions = Bundle("sessions")

    @initialize(
        name=st.sampled_from(sorted(PLANS)),
        batched=st.sampled_from([4, 16, 40]),
        pages=st.integers(15, 24),
        slab=st.sampled_from([1, 2, 4]),
        tiered=st.booleans(),
        kind=st.sampled_from([SyntheticEngine, DeferredEngine]),
    )
    def start(
        self, name: str, batched: int, pages: int, slab: int, tiered: bool, kind: type[SyntheticEngine]
    ) -> None:
        self.plan = PLANS[name]
        self.llm: LLM
        layout = TierLayout.of(self.plan)
        self.tier = HostTier(layout, layout.root_key("", ""), TierLimits(200_000)) if tiered else None
        self.make = partial(
            make_llm,
            self.plan,
            pages,
            batched=batched,
            seqs=3,
            context=220,
            slab=slab,
            tier=self.tier,
            kind=kind,
        )
        self.llm, _ = self.make()
        self.replies: list[Reply] = []
        self.open: list[Session] = []
        self.turns: list[tuple[Session, Generator[TextChunk, None, None]]] = []

    @rule(
        prompts=st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=5),
        cut=st.sampled_from([0, 0, 1, 16, 40]),
        count=st.integers(1, 80),
        shared=st.integers(0, 99),
        stops=st.sampled_from([(), tuple(range(0, 256, 11))]),
    )
    def submit(
        self, prompts: list[list[int]], cut: int, count: int, shared: int, stops: tuple[int, ...]
    ) -> None:
        for prompt in prompts:
            ids = prompt[: max(1, len(prompt) - cut)]
            checked = Prompt(np.asarray(ids), shared_length=min(shared, len(ids)))
            params = SamplingParams(max_tokens=count, stop_token_ids=stops)
            reply = self.llm.generator.prepare(checked, params)
            self.llm.generator.loop.submit(reply.ticket)
            self.llm.generator.loop.settle()
            self.replies.append(reply)

    @rule(steps=st.integers(1, 40))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.llm.generator.loop.turn()
        self._check_finished()

    @rule(which=st.integers(0, 9))
    def cancel(self, which: int) -> None:
        if self.replies:
            loop = self.llm.generator.loop
            loop.post(Cancel(self.replies[which % len(self.replies)].ticket))
            loop.settle()

    @rule(count=st.integers(1, 30))
    def evict(self, count: int) -> None:
        memory = self.llm.generator.loop.core.scheduler.memory
        before = memory.tree.evicted_pages
        wanted = min(count, sum(memory.arena.idle))
        memory.tree.evict(lambda: memory.tree.evicted_pages >= before + wanted, count)
        assert memory.tree.evicted_pages >= before + wanted

    @precondition(lambda self: not (self.replies or self.open or self.turns))
    @rule()
    def restart(self) -> None:
        """Another process goes on over what is in the tier."""
        if self.tier is not None:
            assert self.tier.flush(10)
            self.llm, _ = self.make()

    @rule(target=sessions, on_overflow=st.sampled_from(get_args(OnOverflow)))
    def open_session(self, on_overflow: OnOverflow) -> Session:
        session = self.llm.session("Be brief.", on_overflow)
        self.open.append(session)
        return session

    @rule(session=sessions, text=st.sampled_from(["Hi", "And then? " * 3]), count=st.integers(1, 9))
    def begin_turn(self, session: Session, text: str, count: int) -> None:
        if self._has_room(session):
            self.turns.append((session, session.stream(text, SamplingParams(max_tokens=count))))

    @rule(session=sessions, count=st.integers(1, 9))
    def begin_again(self, session: Session, count: int) -> None:
        if self._is_free(session) and len(session.messages) > 1:
            self.turns.append((session, session.retry(SamplingParams(max_tokens=count))))

    @rule(session=sessions, count=st.integers(1, 9))
    def whole_turns(self, session: Session, count: int) -> None:
        for _ in range(4):
            if self._has_room(session):
                self._check_turn(session, session.send("Go on.", SamplingParams(max_tokens=count)))

    @rule(which=st.integers(0, 9), pieces=st.sampled_from([0, 1, 3, 99]), stopped=st.booleans())
    def advance_turn(self, which: int, pieces: int, stopped: bool) -> None:
        """Take a turn's next pieces, after asking it to stop or not; none drops it."""
        if not self.turns:
            return
        session, chunks = self.turns[which % len(self.turns)]
        if stopped:
            session.stop()
        chunk = None
        for _ in range(pieces):
            chunk = next(chunks)
            if chunk.completion is not None:
                break
        if not pieces or (chunk is not None and chunk.completion is not None):
            chunks.close()
            self.turns.remove((session, chunks))
        if chunk is not None and chunk.completion is not None:
            self._check_turn(session, chunk.completion)
        self._check_finished()

    @rule(session=sessions, change=st.sampled_from(["undo", "system", "clear"]))
    def change_session(self, session: Session, change: str) -> None:
        if not self._is_free(session):
            return
        if change == "system":
            session.system = "Be long."
        elif change == "clear":
            session.clear()
        elif len(session.messages) > 1:
            session.undo()

    @rule(session=sessions)
    def close_session(self, session: Session) -> None:
        if self._is_free(session):
            session.close()
            self.open.remove(session)

    @invariant()
    def pages_are_conserved(self) -> None:
        if hasattr(self, "llm"):
            check(self.llm)

    def _is_free(self, session: Session) -> bool:
        return session in self.open and not any(session is other for other, _ in self.turns)

    def _has_room(self, session: Session) -> bool:
        endless = session._conversation._on_overflow == "drop_oldest"
        return self._is_free(session) and (endless or len(session.messages) < 5)

    def _check_turn(self, session: Session, completion: Completion) -> None:
        """What a reply says is what the definition says after the very tokens that the session now knows."""
        reply = completion.token_ids
        if completion.finish_reason == "cancelled" and not completion.text:
            return
        prompt = session._conversation.known.token_ids[: -len(reply)]
        assert reply == expected_tokens(self.plan, prompt, len(reply), VOCAB)

    def _check_finished(self) -> None:
        for reply in self.replies:
            if reply.ticket.request.finish_reason in ("length", "stop"):
                request = reply.ticket.request
                prompt = request.tokens[: request.prompt_length].tolist()
                expected = expected_tokens(self.plan, prompt, request.num_completion_tokens, VOCAB)
                assert request.completion_ids == expected
        self.replies = [reply for reply in self.replies if not reply.finished]

    def teardown(self) -> None:
        if not hasattr(self, "llm"):
            return
        self._finish()
        if self.tier is not None:
            self.tier.close()

    def _finish(self) -> None:
        for _, chunks in self.turns:
            chunks.close()
        while self.llm.generator.loop.core.scheduler.has_work:
            self.llm.generator.loop.turn()
        self._check_finished()
        for session in self.open:
            session.close()
        check(self.llm)
        assert in_use(self.llm) == 0


TestAnyOrder = Operations.TestCase
TestAnyOrder.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
