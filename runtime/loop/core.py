"""Core: an engine, its scheduler and its tickets, for one thread at a time.

A turn runs one step and gives each ticket what it got. An error of one request ends that one; an error of
the engine ends them all.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from time import monotonic

import numpy as np

from kvfold.plugins.contract.errors import EngineError
from kvfold.runtime.engine.protocol import Engine, Underway
from kvfold.runtime.loop.pace import Pace
from kvfold.runtime.loop.snapshot import LoopSnapshot, RequestView
from kvfold.runtime.loop.ticket import CancelReason, Ticket
from kvfold.runtime.memory.tiers.kv_tier import KvTier
from kvfold.runtime.metrics import Metrics
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.sampling.batch_sampler import Sampled, score_tokens
from kvfold.runtime.scheduler.request import Request
from kvfold.runtime.scheduler.scheduler import Scheduled, Scheduler
from kvfold.runtime.scheduler.step_builder import StepBuilder

# Tickets that get a token, and the rows of logits that it is drawn from.
Sampling = list[tuple[Ticket, int]]
# Snapshots are this far apart while steps run.
PUBLISH_SECONDS = 0.05
# Of tickets that have ended, before their deadlines are forgotten.
MOST_DEADLINES = 256
# Commands wait so long at most while nothing but a tier works.
WAIT_SECONDS = 0.005


class Outcome(Enum):
    """What a turn came to."""

    IDLE = "no request has work"
    WAITING = "all requests wait for pages from the tier"
    COMMITTED = "a step ran, and what it computed counts"
    FAILED = "the engine failed: every request ended with an error, and nothing of the step counts"


@dataclass(frozen=True)
class Turn:
    """One turn of the loop.

    Attributes:
        outcome: of its step.
        advanced: tickets that got a token, or logits, or ended in it.
    """

    outcome: Outcome
    advanced: Sequence[Ticket]


# After these there is more to do.
GOES_ON = frozenset({Outcome.COMMITTED, Outcome.WAITING})


class Core:
    """Runs tickets on an engine.

    Attributes:
        engine: used by nobody else.
        scheduler: its requests and pages.
        failure: why the engine takes no more; None while it is well.
        snapshot: how things stood a moment ago.
    """

    def __init__(self, engine: Engine, config: RuntimeConfig, tier: KvTier | None = None) -> None:
        """An idle core; its pages go into a tier, if there is one, and come from it."""
        info = engine.info
        self.engine = engine
        self.scheduler = Scheduler(info, config, engine.pages, tier)
        self.failure: EngineError | None = None
        self._builder = StepBuilder(
            groups=[group.name for group in info.plan.groups],
            page_size=info.plan.page_size,
            max_tokens=config.max_num_batched_tokens,
            max_seqs=config.max_num_seqs,
            max_pages=-(-info.max_context_length // info.plan.page_size),
        )
        self._tickets: dict[Request, Ticket] = {}
        self._held: dict[Ticket, list[Ticket]] = {}
        self._deadlines: list[tuple[float, int, Ticket]] = []
        self._advanced: dict[Ticket, None] = {}
        self._pace = Pace(config.inter_token_target)
        self._steps = 0
        self._last_step = self._published = monotonic()
        self.snapshot = self._take_snapshot(busy=False)

    def begin(self, ticket: Ticket) -> None:
        """Queue a ticket, behind the one that it waits for."""
        if ticket.ended:  # cancelled before it came here
            return
        if self.failure is not None:
            ticket.error = self.failure
            self.cancel(ticket, "error")
            return
        if ticket.deadline is not None:
            self._note_deadline(ticket, ticket.deadline)
        leader = ticket.after
        if leader is not None and leader.first_token is None and not leader.ended:
            self._held.setdefault(leader, []).append(ticket)
            return
        self._tickets[ticket.request] = ticket
        self.scheduler.submit(ticket.request)

    def cancel(self, ticket: Ticket, reason: CancelReason, keep: bool = False) -> None:
        """End a ticket; of one that has ended, give back what nobody takes. `keep` as for `Cancel`."""
        if ticket.ended:
            if not keep and ticket.request.sequence is not None:
                self.scheduler.discard(ticket.request.sequence)
        else:
            ticket.cancel_reason = reason
            self.scheduler.cancel(ticket.request, keep)
            self._end(ticket)

    def turn(self) -> Turn:
        """Run one step."""
        self._expire(monotonic())
        outcome = self._advance()
        self._publish(outcome)
        advanced, self._advanced = tuple(self._advanced), {}
        return Turn(outcome, advanced)

    def _advance(self) -> Outcome:
        if self.failure is not None or not self.scheduler.has_work:
            return Outcome.IDLE
        running = self.scheduler.running
        decoding = sum(request.length > request.prompt_length for request in running)
        try:
            scheduled = self.scheduler.schedule(self._pace.most_prefill(decoding))
        except Exception as error:  # the device has no memory left for pages, or a law is broken
            self.fail(error)
            return Outcome.FAILED
        if scheduled:
            return self._step(scheduled)
        self.scheduler.wait(WAIT_SECONDS)
        return Outcome.WAITING

    def fail(self, error: Exception) -> None:
        """End every ticket with an error, and take no more; nothing of a failed engine goes into a tier."""
        self.scheduler.memory.link = None
        self.failure = EngineError(f"the engine failed in a step: {error}; load it again")
        self.failure.__cause__ = error
        held = [ticket for tickets in self._held.values() for ticket in tickets]
        for ticket in (*self._tickets.values(), *held):
            ticket.error = self.failure
            try:
                self.cancel(ticket, "error")
            except Exception:  # what broke a law may break it here too: nobody may wait for ever
                ticket.request.finish_reason = "cancelled"
                self._end(ticket)

    def metrics(self) -> Metrics:
        """Counters and page usage now; while a turn is running they may be a step apart."""
        memory = self.scheduler.memory
        return Metrics(
            cache=replace(self.scheduler.metrics),
            pools=memory.usage(),
            kv_cache_bytes=memory.arena.budget,
            evicted_pages=memory.tree.evicted_pages,
        )

    def _note_deadline(self, ticket: Ticket, deadline: float) -> None:
        heapq.heappush(self._deadlines, (deadline, ticket.id, ticket))
        if len(self._deadlines) > MOST_DEADLINES + 2 * len(self._tickets):  # most of them have ended
            self._deadlines = [each for each in self._deadlines if not each[2].ended]
            heapq.heapify(self._deadlines)

    def _expire(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            self.cancel(heapq.heappop(self._deadlines)[2], "deadline", keep=True)

    def _step(self, scheduled: Scheduled) -> Outcome:
        begun = monotonic()
        if not self.snapshot.busy:
            self.snapshot = replace(self.snapshot, busy=True, last_step=begun)
        decoding = prefill = 0
        for request, chunk in scheduled:
            if request.length > request.prompt_length:
                decoding += 1
            else:
                prefill += chunk.end - chunk.start
                self._tickets[request].note_admission(begun)
        try:
            underway = self.engine.begin(self._builder.build([chunk for _, chunk in scheduled]))
            sampling = self._commit(scheduled, underway)
            drawn = self._draw(sampling, underway)
            self._steps += 1
            self._last_step = monotonic()
            self._pace.note(prefill, decoding, self._last_step - begun)
            self._hand_out(sampling, drawn)
        except Exception as error:  # the engine's, or sampling has no kernels, or a law is broken
            self.fail(error)  # whatever it raises: nobody can say what it still can do
            return Outcome.FAILED
        return Outcome.COMMITTED

    def _commit(self, scheduled: Scheduled, underway: Underway) -> Sampling:
        """Count what a step computes, which may be under way, and give a prompt's rows to who reads them.

        Returns:
            tickets that get a token, each with its row.
        """
        row, sampling = 0, []
        for request, chunk in scheduled:
            ticket, rows = self._tickets[request], len(chunk.wanted)
            samples = rows > 0 and request.generates and chunk.end == request.length
            self.scheduler.commit(request, chunk)
            if rows > samples:
                self._read(ticket, chunk.wanted.start, underway.logits(slice(row, row + rows - samples)))
            row += rows
            if request.finish_reason is None:
                if samples:
                    sampling.append((ticket, row - 1))
            elif request in self._tickets:  # its prompt was all, and reading it did not fail
                self._end(ticket)
        return sampling

    def _read(self, ticket: Ticket, first: int, logits: np.ndarray) -> None:
        """Give a prompt's rows, from a position on, to who reads them."""
        self._advanced[ticket] = None
        request, state = ticket.request, ticket.state
        try:
            if ticket.logits_sink is not None:
                ticket.logits_sink(first, logits)
            if state is not None and state.params.prompt_logprobs is not None:
                follow = request.tokens[first + 1 : min(first + 1 + len(logits), request.prompt_length)]
                top = state.params.prompt_logprobs
                ticket.prompt_logprobs += score_tokens(logits[: len(follow)], follow, top)
        except Exception as error:  # one request's trouble is its own
            self._end_with(ticket, error)

    def _draw(self, sampling: Sampling, underway: Underway) -> list[Sampled]:
        """Draw the next token of each ticket from its row; the step is done then."""
        if not sampling:
            underway.wait()
            return []
        states = [ticket.state for ticket, _ in sampling if ticket.state]
        return underway.sample([row for _, row in sampling], states)

    def _hand_out(self, sampling: Sampling, drawn: Sequence[Sampled]) -> None:
        for (ticket, _), sampled in zip(sampling, drawn, strict=True):
            if sampled.error is not None:
                self._end_with(ticket, sampled.error)
                continue
            try:
                self._append(ticket, sampled)
            except Exception as error:  # one request's trouble is its own
                self._end_with(ticket, error)

    def _append(self, ticket: Ticket, sampled: Sampled) -> None:
        request, token = ticket.request, sampled.token_id
        ticket.note_token(self._last_step)
        stops = ticket.receiver.push(token, sampled.logprob, token in request.end_tokens)
        constraint = ticket.state.constraint if ticket.state is not None else None
        self.scheduler.append(request, token, stops or (constraint is not None and constraint.finished))
        self._advanced[ticket] = None
        if request.finish_reason is not None:
            self._end(ticket)
        elif self._held:
            self._release_held(ticket)

    def _end_with(self, ticket: Ticket, error: Exception) -> None:
        ticket.error = error
        self.cancel(ticket, "error")

    def _end(self, ticket: Ticket) -> None:
        self._tickets.pop(ticket.request, None)
        self._advanced[ticket] = None
        ticket.receiver.end()
        self._release_held(ticket)

    def _release_held(self, leader: Ticket) -> None:
        for ticket in self._held.pop(leader, ()):
            if not ticket.ended:
                self.begin(ticket)

    def _publish(self, outcome: Outcome) -> None:
        """Tell how things stand: when work ends, else so often that telling costs nothing."""
        now = monotonic()
        if outcome in GOES_ON and now - self._published < PUBLISH_SECONDS:
            return
        if outcome is Outcome.IDLE and not self.snapshot.busy and not self._advanced:
            return
        self._published = now
        self.snapshot = self._take_snapshot(busy=self.scheduler.has_work)

    def _take_snapshot(self, busy: bool) -> LoopSnapshot:
        scheduler = self.scheduler
        return LoopSnapshot(
            steps=self._steps,
            last_step=self._last_step,
            busy=busy,
            waiting=len(scheduler.waiting),
            running=len(scheduler.running),
            waiting_tokens=sum(request.prompt_length for request in scheduler.waiting),
            prefill_rate=self._pace.prefill_rate,
            decode_rate=self._pace.decode_rate,
            metrics=self.metrics(),
            requests=tuple(RequestView.of(ticket) for ticket in self._tickets.values()),
        )
