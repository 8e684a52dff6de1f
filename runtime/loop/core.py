"""Core: an engine, its scheduler and its tickets, for one thread at a time.

A turn begins a step and gives each ticket what it got. Where the engine feeds its next step (`Drawing.feeds`)
that is the tokens of the step before, so that the engine computes while they are told; else those of the same
step. An error of one request ends that one; an error of the engine ends them all.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from time import monotonic

import numpy as np

from kvfold.plugins.contract.errors import EngineError
from kvfold.runtime.engine.protocol import Engine
from kvfold.runtime.loop.flight import Flight, Sampling
from kvfold.runtime.loop.pace import Pace
from kvfold.runtime.loop.snapshot import LoopSnapshot, RequestView
from kvfold.runtime.loop.ticket import CancelReason, Ticket
from kvfold.runtime.memory.tiers.kv_tier import KvTier
from kvfold.runtime.metrics import Metrics
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.sampling.batch_sampler import Sampled, score_tokens
from kvfold.runtime.scheduler.request import Request
from kvfold.runtime.scheduler.scheduler import Scheduler
from kvfold.runtime.scheduler.step_builder import StepBuilder

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
        self._flight: Flight | None = None
        self._pace = Pace(config.inter_token_target)
        self._steps = 0
        self._last_step = self._published = self._turn_began = self._turn_ended = monotonic()
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
        self._turn_began = monotonic()
        self._expire(self._turn_began)
        outcome = self._advance()
        self._publish(outcome)
        advanced, self._advanced = tuple(self._advanced), {}
        self._turn_ended = monotonic()
        return Turn(outcome, advanced)

    def _advance(self) -> Outcome:
        if self.failure is not None or not (self.scheduler.has_work or self._flight):
            return Outcome.IDLE
        if not self.snapshot.busy:  # the time without work is none of a step's
            self._last_step = self._turn_began
            self.snapshot = replace(self.snapshot, busy=True, last_step=self._last_step)
        try:
            return self._step()
        except Exception as error:  # the engine's, or the device has no memory left, or a law is broken
            self.fail(error)  # whatever it raises: nobody can say what it still can do
            return Outcome.FAILED

    def fail(self, error: Exception) -> None:
        """End every ticket with an error, and take no more; nothing of a failed engine goes into a tier."""
        self.scheduler.memory.link = self._flight = None
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

    def _step(self) -> Outcome:
        """Begin a step; then take the tokens that the one before drew; then count what the new one computes.

        A reply that ends with its token has a row in the new step all the same. Nothing of that row counts,
        and pages that are given back are written by later steps only.
        """
        try:
            flight = self._launch()
        finally:  # what was drawn is told, even where no step can follow
            collected = self._collect()
        if flight is not None:
            feeds = flight.draw(self._commit(flight))
            self._flight = flight
            if not feeds:
                self._collect()
        elif not collected:
            self.scheduler.wait(WAIT_SECONDS)
            return Outcome.WAITING
        return Outcome.COMMITTED

    def _launch(self) -> Flight | None:
        """Begin a step; None where there is none to begin."""
        decoding = sum(request.replies for request in self.scheduler.running)
        scheduled = self.scheduler.schedule(self._pace.most_prefill(decoding))
        if not scheduled:
            return None
        begun = monotonic()
        for request, _ in scheduled:
            if not request.replies:
                self._tickets[request].note_admission(begun)
        underway = self.engine.begin(self._builder.build([chunk for _, chunk in scheduled]))
        return Flight(scheduled, underway, begun)

    def _collect(self) -> bool:
        """Give each ticket the token that was drawn for it; whether there was a step to wait for."""
        if (flight := self._flight) is None:
            return False
        drawn = flight.collect()
        self._flight = None  # not before: Ctrl-C while it waits loses no token
        self._steps += 1
        before, self._last_step = max(flight.begun, self._last_step), monotonic()
        if flight.begun < self._turn_began:  # the caller's time between two turns is none of a step's
            before += self._turn_began - self._turn_ended
        self._pace.note(flight.prefill, flight.decoding, self._last_step - before)
        for ticket, sampled in drawn:
            self._hand_out(ticket, sampled)
        return True

    def _commit(self, flight: Flight) -> Sampling:
        """Count what a step computes, and give a prompt's rows to who reads them; who gets a token then."""
        row, sampling = 0, []
        for request, chunk in flight.scheduled:
            first, row = row, row + len(chunk.wanted)
            if request.finish_reason is not None:  # with a token that was not known as the step began
                continue
            ticket = self._tickets[request]
            samples = row > first and request.generates and chunk.end == request.length
            self.scheduler.commit(request, chunk)
            if row - first > samples:
                self._read(ticket, chunk.wanted.start, flight.underway.logits(slice(first, row - samples)))
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

    def _hand_out(self, ticket: Ticket, sampled: Sampled) -> None:
        try:
            if sampled.error is not None:
                raise sampled.error
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
        idle = outcome is Outcome.IDLE and not self.snapshot.busy and not self._advanced
        if idle or (outcome in GOES_ON and now - self._published < PUBLISH_SECONDS):
            return
        self._published = now
        self.snapshot = self._take_snapshot(busy=self.scheduler.has_work or self._flight is not None)

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
