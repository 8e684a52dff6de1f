"""EngineLoop: the one owner of an engine, its scheduler and its pages.

Clients of any thread put commands into the inbox. A turn takes them out, runs a step, and gives each
request what it got. Turns run one at a time: by whoever waits for a reply, or by a thread of the loop's own
(`EngineThread`). An error of one request ends that one; an error of the engine ends them all.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from queue import Empty, SimpleQueue
from threading import Condition, RLock, Thread
from time import perf_counter

import numpy as np

from kvfold.plugins.contract.errors import EngineError
from kvfold.runtime.engine.protocol import Engine
from kvfold.runtime.loop.commands import Cancel, Close, Command, Discard, Submit
from kvfold.runtime.loop.ticket import CancelReason, Ticket
from kvfold.runtime.metrics import Metrics, PoolUsage
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.sampling.logprobs import token_logprob
from kvfold.runtime.scheduler.request import Request
from kvfold.runtime.scheduler.scheduler import Scheduled, Scheduler
from kvfold.runtime.scheduler.step_builder import StepBuilder


class Outcome(Enum):
    """What a turn came to."""

    IDLE = "no request has work"
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


class EngineLoop:
    """Runs tickets on an engine.

    Attributes:
        engine: used by nobody else.
        scheduler: its requests and pages; to be read only between turns.
        failure: why the engine takes no more; None while it is well.
    """

    def __init__(self, engine: Engine, config: RuntimeConfig) -> None:
        """An idle loop."""
        info = engine.info
        self.engine = engine
        self.scheduler = Scheduler(info, config)
        self.failure: EngineError | None = None
        self._builder = StepBuilder(
            groups=[group.name for group in info.plan.groups],
            page_size=info.plan.page_size,
            max_tokens=config.max_num_batched_tokens,
            max_seqs=config.max_num_seqs,
            max_pages=-(-info.max_context_length // info.plan.page_size),
        )
        self._turning = RLock()
        self._turned = Condition()
        self._thread: Thread | None = None
        self._inbox: SimpleQueue[Command] = SimpleQueue()
        self._tickets: dict[Request, Ticket] = {}
        self._held: dict[Ticket, list[Ticket]] = {}
        self._deadlines: list[tuple[float, int, Ticket]] = []
        self._advanced: dict[Ticket, None] = {}

    # For clients, from any thread

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence that can run: the context's, or what the pools hold."""
        return self.scheduler.max_length

    def check(self, ticket: Ticket) -> None:
        """Refuse a ticket that can never run.

        Raises:
            EngineError: the engine failed.
            CapacityError: it needs more pages than the whole pool has.
        """
        if self.failure is not None:
            raise self.failure
        self.scheduler.check_capacity(ticket.request)

    def submit(self, ticket: Ticket) -> None:
        """Queue a ticket; raises as `check` does."""
        self.check(ticket)
        ticket.start_clock()
        self.post(Submit(ticket))

    def post(self, command: Command) -> None:
        """Put a command into the inbox; signal handlers may do so too."""
        self._inbox.put(command)

    def settle(self) -> None:
        """Carry out what is in the inbox, without a step; a loop's own thread does so within a step."""
        if self._thread is None:
            with self._turning:
                self._run_commands()

    def advance(self, done: Callable[[], bool]) -> None:
        """Wait until `done`, or for one turn: of this thread, where the loop has none of its own."""
        if self._thread is not None:
            with self._turned:
                self._turned.wait_for(lambda: done() or self._thread is None)
            return
        with self._turning:
            if not done():
                self.turn()

    def metrics(self) -> Metrics:
        """Counters and page usage now; while a turn is running they may be a step apart."""
        memory = self.scheduler.memory
        pools = zip(memory.horizons, memory.pools, strict=True)
        return Metrics(
            cache=replace(self.scheduler.metrics),
            pools={law.name: PoolUsage(pool.num_pages, pool.num_free, pool.num_idle) for law, pool in pools},
            evicted_pages=memory.tree.evicted_pages,
        )

    # For the owner

    def start(self, deliver: Callable[[Turn], None]) -> None:
        """Give the loop a thread of its own, which runs turns until `close`, or until the engine fails.

        Args:
            deliver: called in that thread after each turn that advanced something.
        """
        self._thread = Thread(target=self._run, args=(deliver,), name="kvfold engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the loop's own thread after its turn, and wait for that."""
        thread = self._thread
        if thread is not None:
            self.post(Close())
            thread.join()

    def _run(self, deliver: Callable[[Turn], None]) -> None:
        while self._thread is not None:
            turn = self.turn()
            if turn.advanced:
                deliver(turn)
            with self._turned:
                self._turned.notify_all()
            if turn.outcome is not Outcome.COMMITTED and self._thread is not None:
                command = self._inbox.get()
                with self._turning:
                    self._run_command(command)

    def turn(self) -> Turn:
        """Carry out the inbox, then run one step."""
        with self._turning:
            self._run_commands()
            self._expire(perf_counter())
            scheduled = self.scheduler.schedule()
            outcome = self._step(scheduled) if scheduled else Outcome.IDLE
            advanced, self._advanced = tuple(self._advanced), {}
            return Turn(outcome, advanced)

    def _run_commands(self) -> None:
        while True:
            try:
                self._run_command(self._inbox.get_nowait())
            except Empty:
                return

    def _run_command(self, command: Command) -> None:
        match command:
            case Submit(ticket):
                self._begin(ticket)
            case Cancel(ticket, reason, keep):
                self._cancel(ticket, reason, keep)
            case Discard(sequence):
                self.scheduler.discard(sequence)
            case Close():
                self._thread = None

    def _begin(self, ticket: Ticket) -> None:
        if ticket.ended:  # cancelled before it came here
            return
        if self.failure is not None:
            ticket.error = self.failure
            self._cancel(ticket, "error")
            return
        if ticket.deadline is not None:
            heapq.heappush(self._deadlines, (ticket.deadline, ticket.id, ticket))
        leader = ticket.after
        if leader is not None and leader.first_token is None and not leader.ended:
            self._held.setdefault(leader, []).append(ticket)
            return
        self._tickets[ticket.request] = ticket
        self.scheduler.submit(ticket.request)

    def _expire(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            self._cancel(heapq.heappop(self._deadlines)[2], "deadline", keep=True)

    def _cancel(self, ticket: Ticket, reason: CancelReason, keep: bool = False) -> None:
        if not ticket.ended:
            ticket.cancel_reason = reason
            self.scheduler.cancel(ticket.request, keep)
            self._end(ticket)

    def _step(self, scheduled: Scheduled) -> Outcome:
        begun = perf_counter()
        for request, _ in scheduled:
            self._tickets[request].note_admission(begun)
        try:
            logits = self.engine.execute(self._builder.build([chunk for _, chunk in scheduled]))
        except Exception as error:  # whatever an engine raises: nobody can say what it still can do
            self._fail(error)
            return Outcome.FAILED
        self._commit(scheduled, logits)
        return Outcome.COMMITTED

    def _commit(self, scheduled: Scheduled, logits: np.ndarray) -> None:
        """Hand out a step's rows: those of a prompt to who reads them, the last one's to be sampled."""
        now, row = perf_counter(), 0
        for request, chunk in scheduled:
            ticket, rows = self._tickets[request], len(chunk.wanted)
            samples = rows > 0 and request.generates and chunk.end == request.length
            self.scheduler.commit(request, chunk)
            try:
                if rows > samples and ticket.logits_sink is not None:
                    ticket.logits_sink(chunk.wanted.start, logits[row : row + rows - samples])
                    self._advanced[ticket] = None
                if samples:
                    self._sample(ticket, logits[row + rows - 1], now)
            except Exception as error:  # one request's trouble is its own
                ticket.error = error
                self._cancel(ticket, "error")
            if ticket.ended and request in self._tickets:
                self._end(ticket)
            row += rows

    def _sample(self, ticket: Ticket, logits: np.ndarray, now: float) -> None:
        request, top = ticket.request, ticket.params.logprobs
        token = ticket.sampler.sample(logits, request.tokens[: request.length])
        logprob = None if top is None else token_logprob(logits, token, top)
        ticket.note_token(now)
        ends = token in request.end_tokens
        self.scheduler.append(request, token, ticket.receiver.push(token, logprob, ends))
        self._advanced[ticket] = None
        if ticket in self._held:
            self._release_held(ticket)

    def _end(self, ticket: Ticket) -> None:
        self._tickets.pop(ticket.request, None)
        self._advanced[ticket] = None
        ticket.receiver.end()
        self._release_held(ticket)

    def _release_held(self, leader: Ticket) -> None:
        for ticket in self._held.pop(leader, ()):
            if not ticket.ended:
                self._begin(ticket)

    def _fail(self, error: Exception) -> None:
        self.failure = EngineError(f"the engine failed in a step: {error}; load it again")
        self.failure.__cause__ = error
        held = [ticket for tickets in self._held.values() for ticket in tickets]
        for ticket in (*self._tickets.values(), *held):
            ticket.error = self.failure
            self._cancel(ticket, "error")
