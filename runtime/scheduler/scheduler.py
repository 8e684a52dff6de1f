"""Scheduler: which tokens of which requests a step computes.

Running requests come first, oldest first, each with its next token or the next chunk of its prompt;
what is left of the token budget admits waiting ones. When pages run out, idle cached pages are
evicted, then kept sequences of idle sessions are given up, then the newest running request is
preempted: its pages go to the radix tree and it computes again what was evicted meanwhile. The
oldest request is never preempted and every request fits the pool, so every request ends.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict

from kvfold.plugins.contract.errors import CapacityError, KvfoldError
from kvfold.runtime.engine.protocol import Engine
from kvfold.runtime.memory.kv_memory import KvMemory
from kvfold.runtime.memory.paged_sequence import PagedSequence
from kvfold.runtime.metrics import CacheMetrics
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.scheduler.request import Request
from kvfold.runtime.scheduler.step_builder import Chunk, StepBuilder

# How many waiting requests are compared for the longest cached prefix, and how often younger ones
# may go before an older one.
LOOKAHEAD = 16
MAX_OVERTAKEN = 8


class Scheduler:
    """Runs requests on an engine, one step at a time. Not thread-safe.

    Attributes:
        max_length: tokens of the longest sequence that can run: the context's, or what the pools hold.
    """

    def __init__(self, engine: Engine, config: RuntimeConfig) -> None:
        """An idle scheduler with the engine's memory to itself."""
        info = engine.info
        self.engine = engine
        self.memory = KvMemory(info)
        self.metrics = CacheMetrics()
        self._config = config
        self.max_length = bisect_left(range(1, info.max_context_length + 1), True, key=self._is_too_long)
        self._waiting: list[Request] = []
        self._running: list[Request] = []
        self._parked: OrderedDict[int, PagedSequence] = OrderedDict()
        self._builder = StepBuilder(
            groups=[group.name for group in info.plan.groups],
            page_size=info.plan.page_size,
            max_tokens=config.max_num_batched_tokens,
            max_seqs=config.max_num_seqs,
            max_pages=-(-info.max_context_length // info.plan.page_size),
        )

    @property
    def has_work(self) -> bool:
        """Whether a request is waiting or running."""
        return bool(self._waiting or self._running)

    @property
    def sequences(self) -> list[PagedSequence]:
        """Every sequence that holds pages."""
        running = [request.sequence for request in self._running if request.sequence is not None]
        return running + list(self._parked.values())

    def submit(self, request: Request) -> None:
        """Queue a request; raises CapacityError as `check_capacity` does."""
        self.check_capacity(request)
        request.start_clock()
        self._waiting.append(request)

    def check_capacity(self, request: Request) -> None:
        """Refuse a request that could never run.

        Raises:
            CapacityError: it needs more pages than the whole pool has.
        """
        length = len(request.tokens)
        short = self.memory.shortfall(length, self._config.max_num_batched_tokens)
        if short:
            group, needed, there = short
            raise CapacityError(
                f"a request of {request.prompt_length} prompt and {length - request.prompt_length} new "
                f"tokens needs {needed} pages of group {group}, the pool has {there}; raise "
                "kv_cache_bytes, or lower max_tokens or max_num_batched_tokens"
            )

    def cancel(self, request: Request) -> None:
        """End a request now and take back its pages; nothing happens to one that has ended."""
        if request.finish_reason is not None:
            return
        request.finish_reason = "cancelled"
        if request.sequence is None:
            if request in self._waiting:  # not so where it was never submitted
                self._waiting.remove(request)
            return
        self._running.remove(request)
        self.memory.release(request.sequence)
        request.sequence = None

    def discard(self, sequence: PagedSequence) -> None:
        """Give back a kept sequence whose session ended or cannot use it."""
        if self._parked.pop(id(sequence), None) is not None:
            self.memory.release(sequence)

    def step(self) -> list[Request]:
        """Run one engine step; returns the requests that got a token, some of them now finished.

        Raises:
            KvfoldError: a request's logits cannot be sampled; it is cancelled, the others got their token.
        """
        self._end_stopped()
        scheduled = self._schedule()
        assert scheduled or not self.has_work, "nothing fits although every request fits the pool"
        if not scheduled:
            return []
        logits = self.engine.execute(self._builder.build([chunk for _, chunk in scheduled]))
        rows = iter(logits)
        sampled: list[Request] = []
        failure: KvfoldError | None = None
        for request, chunk in scheduled:
            self.memory.commit(chunk.sequence, chunk.end)
            self.metrics.recomputed_tokens += request.count_chunk(chunk.start, chunk.end)
            if not chunk.samples:
                continue
            try:
                request.append_from(next(rows))
            except KvfoldError as error:
                self.cancel(request)
                failure = failure or error
                continue
            sampled.append(request)
            if request.finish_reason is not None:
                self._retire(request)
        if failure is not None:
            raise failure
        return sampled

    def _is_too_long(self, length: int) -> bool:
        return self.memory.shortfall(length, self._config.max_num_batched_tokens) is not None

    def _end_stopped(self) -> None:
        """End requests that were asked to stop: as finished where they said something, else cancelled."""
        for request in [each for each in (*self._running, *self._waiting) if each.stopping]:
            if request.sequence is None or not request.num_completion_tokens:
                self.cancel(request)
            else:
                request.finish_reason = "cancelled"
                self._retire(request)

    def _schedule(self) -> list[tuple[Request, Chunk]]:
        budget = self._config.max_num_batched_tokens
        scheduled: list[tuple[Request, Chunk]] = []
        preemptions = self.metrics.preemptions
        for request in tuple(self._running):
            if request.sequence is None or budget == 0:
                continue
            chunk = _next_chunk(request, request.sequence, budget)
            if self._make_room(request, chunk):
                scheduled.append((request, chunk))
                budget -= chunk.end - chunk.start
        if self.metrics.preemptions > preemptions:
            return scheduled
        while self._waiting and budget > 0 and len(self._running) < self._config.max_num_seqs:
            request = self._next_waiting()
            admitted = self._admit(request, budget)
            if admitted is None:
                break
            scheduled.append((request, admitted))
            budget -= admitted.end - admitted.start
        return scheduled

    def _make_room(self, request: Request, chunk: Chunk) -> bool:
        """Map a running request's pages, preempting newer ones; False when it was preempted itself."""
        while not self._allocate(chunk, spare=0):
            victim = self._running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _allocate(self, chunk: Chunk, spare: int) -> bool:
        """Map pages, giving up idle sessions' kept sequences where needed, least recently used first."""
        while not self.memory.allocate(chunk.sequence, chunk.end, spare):
            if not self._parked:
                return False
            _, sequence = self._parked.popitem(last=False)
            self.memory.release(sequence)
            self.metrics.reclaimed_sessions += 1
        return True

    def _preempt(self, request: Request) -> None:
        assert request.sequence is not None
        self._running.remove(request)
        self.memory.release(request.sequence)
        request.sequence = None
        request.preempted = True
        self.metrics.preemptions += 1
        self._waiting.insert(0, request)

    def _next_waiting(self) -> Request:
        """Longest cached prefix first, unless the oldest was preempted or overtaken too often."""
        oldest = self._waiting[0]
        if len(self._waiting) == 1 or oldest.preempted or oldest.overtaken >= MAX_OVERTAKEN:
            return oldest
        return max(self._waiting[:LOOKAHEAD], key=self._reusable)

    def _reusable(self, request: Request) -> int:
        if request.kept is not None and not request.kept.released:
            return request.kept.num_computed
        return self.memory.match_tokens(request.tokens, request.length)

    def _admit(self, request: Request, budget: int) -> Chunk | None:
        """Start a waiting request; None when its first chunk finds no room yet.

        Each running request keeps a page in reserve, or admission would preempt what it just let in.
        """
        kept = request.kept if request.kept is not None and not request.kept.released else None
        if kept is not None:
            del self._parked[id(kept)]
            self.memory.resume(kept, request.tokens, request.prefix)
        sequence = kept or self.memory.begin(request.tokens, request.length, request.prefix)
        chunk = _next_chunk(request, sequence, budget)
        if not self._allocate(chunk, spare=len(self._running)):
            if kept is not None:
                self._parked[id(kept)] = kept
            else:
                self.memory.release(sequence)
            return None
        self._count_admission(request, sequence)
        for older in self._waiting[: self._waiting.index(request)]:
            older.overtaken += 1
        self._waiting.remove(request)
        self._running.append(request)
        request.sequence, request.kept = sequence, None
        return chunk

    def _count_admission(self, request: Request, sequence: PagedSequence) -> None:
        if request.kept is not None:
            resumed = request.kept is sequence
            self.metrics.resumed_turns += resumed
            self.metrics.rematched_turns += not resumed
        if request.reused_tokens is None:
            self.metrics.queried_tokens += request.prompt_length
            self.metrics.hit_tokens += sequence.hit_tokens
            self.metrics.too_short_tokens += sequence.path_tokens - sequence.hit_tokens
        request.begin_at(sequence.hit_tokens)

    def _retire(self, request: Request) -> None:
        """Take a finished request out; a session's sequence stays, cached but pinned."""
        assert request.sequence is not None
        self._running.remove(request)
        if request.keep:
            self.memory.publish(request.sequence)
            self._parked[id(request.sequence)] = request.sequence
        else:
            self.memory.release(request.sequence)
            request.sequence = None


def _next_chunk(request: Request, sequence: PagedSequence, budget: int) -> Chunk:
    """The next positions of a request, as many as the budget allows."""
    start = sequence.num_computed
    end = min(request.length, start + budget)
    return Chunk(sequence, start, end, samples=end == request.length)
