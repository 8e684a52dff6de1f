"""Scheduler: which tokens of which requests a step computes.

Running requests come first, oldest first, each with its next token or the next chunk of its prompt;
what is left of the token budget admits waiting ones. When pages run out, idle cached pages are
evicted, then kept sequences of idle sessions are given up, then chunks of prompts become smaller, down to
a page, then the newest running request is preempted: its pages go to the radix tree and it computes again
what was evicted meanwhile. The oldest of the most urgent requests is never preempted and every request fits,
so every request ends.

A prompt that wants all its logits leaves a row to each other request that runs or may enter. Where an engine
has as many rows as tokens it leaves so many tokens: replies go on, other prompts are read a few at a time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict

import numpy as np

from kvfold.plugins.contract.errors import CapacityError, TargetError
from kvfold.runtime.engine.protocol import EngineInfo, PageStore
from kvfold.runtime.memory.kv_memory import KvMemory
from kvfold.runtime.memory.paged_sequence import PagedSequence
from kvfold.runtime.memory.tiers.kv_tier import KvTier
from kvfold.runtime.metrics import CacheMetrics
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.scheduler.next_waiting import next_waiting
from kvfold.runtime.scheduler.request import Request
from kvfold.runtime.scheduler.step_builder import Chunk
from kvfold.runtime.scheduler.step_room import StepRoom
from kvfold.runtime.scheduler.tier_loads import TierLoads

Scheduled = list[tuple[Request, Chunk]]


class Scheduler:
    """Says what a step computes, and is told what came of it. Not thread-safe.

    A step: `schedule`, the engine's work, then for each chunk `commit`, and `append` where a token was
    sampled. Nothing of a chunk counts before its commit. `schedule` may precede `append`: `Request.expect`.

    Attributes:
        max_length: tokens of the longest sequence that can run: the context's, or what the pools hold.
        running: requests that have pages, in the order of their admission.
        waiting: requests that have none yet, or gave them up.
    """

    def __init__(
        self, info: EngineInfo, config: RuntimeConfig, store: PageStore, tier: KvTier | None = None
    ) -> None:
        """An idle scheduler with the engine's memory to itself, and a tier below it or none.

        Raises:
            TargetError: a step of the engine has fewer rows of logits than sequences may run.
        """
        self.memory = KvMemory(info, store, tier)
        self.metrics = CacheMetrics()
        self.running: list[Request] = []
        self.waiting: list[Request] = []
        self._config = config
        self._rows = info.max_logits or config.max_num_batched_tokens
        if self._rows < config.max_num_seqs:
            raise TargetError(
                f"a step of this engine has {self._rows} rows of logits, fewer than max_num_seqs "
                f"{config.max_num_seqs}; lower that, or build the engine again for more sequences"
            )
        self._parked: OrderedDict[int, PagedSequence] = OrderedDict()
        self._loads = TierLoads(self.memory)
        self.max_length = bisect_left(range(1, info.max_context_length + 1), True, key=self._is_too_long)

    @property
    def has_work(self) -> bool:
        """Whether a request is waiting or running."""
        return bool(self.waiting or self.running)

    @property
    def sequences(self) -> list[PagedSequence]:
        """Every sequence that holds pages."""
        running = [request.sequence for request in self.running if request.sequence is not None]
        return running + list(self._parked.values())

    def check_capacity(self, request: Request) -> None:
        """Refuse a request that could never run; any thread may ask.

        Raises:
            CapacityError: it needs more bytes than there are.
        """
        length = len(request.tokens)
        if not self.memory.can_run(length):
            raise CapacityError(
                f"a request of {request.prompt_length} prompt and {length - request.prompt_length} new "
                f"tokens needs {self.memory.bytes_needed(length):,} bytes of KV pages, kv_cache_bytes is "
                f"{self.memory.arena.budget:,}; raise it, or lower max_tokens"
            )

    def submit(self, request: Request) -> None:
        """Queue a request; a kept sequence that it does not go on from is given back.

        Raises:
            CapacityError: as `check_capacity`.
        """
        self.check_capacity(request)
        if request.kept is not None and not self._goes_on(request, request.kept):
            self.discard(request.kept)
            request.kept = None
            self.metrics.rematched_turns += 1
        if request.kept is None:
            self._loads.ask(request)
        self.waiting.append(request)

    def cancel(self, request: Request, keep: bool = False) -> None:
        """End a request now; nothing happens to one that has ended.

        Args:
            request: which.
            keep: whether what was said counts, so that its sequence is kept where the request asked for that.
        """
        if request.finish_reason is None:
            request.finish_reason = "cancelled"
            self._retire(request, keep)

    def discard(self, sequence: PagedSequence) -> None:
        """Give back a kept sequence that nobody will go on from."""
        if self._parked.pop(id(sequence), None) is not None:
            self.memory.release(sequence)

    def schedule(self, most_prefill: int | None = None) -> Scheduled:
        """What the next step computes: empty without work, or while all of it waits.

        Args:
            most_prefill: tokens of prompts at most; by default as many as `max_num_batched_tokens` leaves.
        """
        budget = self._config.max_num_batched_tokens
        prompts = budget if most_prefill is None else most_prefill
        scheduled = self._schedule(StepRoom(budget, prompts, self._rows, self._most_sequences))
        last = (request.ends_next for request in self.running)
        assert scheduled or self._loads or not self.has_work or any(last), "nothing fits, but each alone does"
        return scheduled

    def wait(self, seconds: float) -> None:
        """Wait until something comes from the tier, so long at most."""
        self._loads.wait(seconds)

    def commit(self, request: Request, chunk: Chunk) -> None:
        """The chunk's keys and values are in the cache; a prompt that is only read ends with its last one."""
        self.memory.commit(chunk.sequence, chunk.end)
        self.metrics.recomputed_tokens += request.count_chunk(chunk.start, chunk.end)
        if chunk.end == request.length and not request.generates:
            request.finish_reason = "length"
            self._retire(request)

    def append(self, request: Request, token: int, stops: bool = False) -> None:
        """The token that follows was sampled; the reply may end with it, and does so where it `stops`."""
        request.append(token, stops)
        if request.finish_reason is not None:
            self._retire(request)

    def _is_too_long(self, length: int) -> bool:
        return not self.memory.can_run(length)

    def _goes_on(self, request: Request, kept: PagedSequence) -> bool:
        computed = kept.num_computed
        return (
            id(kept) in self._parked
            and computed <= request.first_wanted
            and kept.tenant == request.prefix.tenant
            and np.array_equal(request.tokens[:computed], kept.tokens[:computed])
        )

    def _parked_of(self, request: Request) -> PagedSequence | None:
        """The kept sequence that a request goes on from, unless memory ran short meanwhile."""
        return request.kept if request.kept is not None and id(request.kept) in self._parked else None

    def _schedule(self, room: StepRoom) -> Scheduled:
        scheduled: Scheduled = []
        preemptions = self.metrics.preemptions
        for request in sorted(self.running, key=lambda each: each.priority):  # a victim comes after
            if request.sequence is None or request.ends_next:
                continue
            chunk = room.next_chunk(request, request.sequence)
            if chunk is not None and (made := self._make_room(request, chunk)) is not None:
                scheduled.append((request, made))
                room.take(made, prompt=request.length - made.start > 1)
        if self.metrics.preemptions > preemptions:
            return scheduled
        while room.admits and self._may_admit:
            request, overtaken = next_waiting(self._ready(), self.running, self._reusable)
            admitted = self._admit(request, room)
            if admitted is None:
                break
            for older in overtaken:
                older.overtaken += 1
            scheduled.append((request, admitted))
            room.take(admitted, prompt=True)
        return scheduled

    @property
    def _most_sequences(self) -> int:
        may_enter = min(len(self._ready()), self._config.max_num_seqs - len(self.running))
        return may_enter + sum(not request.ends_next for request in self.running)

    @property
    def _may_admit(self) -> bool:
        return len(self.running) < self._config.max_num_seqs and bool(self._ready())

    def _make_room(self, request: Request, chunk: Chunk) -> Chunk | None:
        """Map a running request's pages, preempting newer ones; None when it was preempted, or waits."""
        while (mapped := self._map(chunk, spare=0)) is None:
            victim = max(reversed(self.running), key=lambda each: each.priority)
            if victim.ends_next:  # and gives its pages back then
                return None
            self._preempt(victim)
            if victim is request:
                return None
        return mapped

    def _map(self, chunk: Chunk, spare: int) -> Chunk | None:
        """Map pages for a chunk, or for a smaller one where the whole finds no room; None where none does.

        Idle sessions' kept sequences are given up before that, least recently used first, unless all of them
        together would not make room for a page.
        """
        least = min(chunk.end, chunk.start + self.memory.page_size)
        helps: bool | None = None
        while not self.memory.allocate(chunk.sequence, chunk.end, spare):
            if self._parked and helps is None:
                helps = self.memory.would_fit(chunk.sequence, least, spare, self._parked.values())
            if self._parked and helps:
                _, sequence = self._parked.popitem(last=False)
                self.memory.release(sequence)
                self.metrics.reclaimed_sessions += 1
                continue
            size = chunk.end - chunk.start
            if size <= self.memory.page_size:
                return None
            chunk = chunk.cut(max(self.memory.page_size, size // 2))
        return chunk

    def _preempt(self, request: Request) -> None:
        assert request.sequence is not None
        self.running.remove(request)
        self.memory.release(request.sequence)
        request.sequence = None
        request.preempted = True
        self._loads.preempted(request)
        self.metrics.preemptions += 1
        self.waiting.insert(0, request)

    def _ready(self) -> list[Request]:
        return [each for each in self.waiting if not self._loads.is_awaited(each)]

    def _reusable(self, request: Request) -> int:
        parked = self._parked_of(request)
        if parked is not None:
            return parked.num_computed
        return self.memory.match_tokens(request.tokens, request.first_wanted + 1, request.prefix.tenant)

    def _admit(self, request: Request, room: StepRoom) -> Chunk | None:
        """Start a waiting request; None when its first chunk finds no room yet, or the tier has what it lost.

        Each running request keeps a page in reserve, or admission would preempt what it just let in.
        """
        load = self._loads.take(request)
        if load is not None:
            self.metrics.loaded_tokens += self.memory.take_in(load)
        parked = self._parked_of(request)
        if parked is not None:
            del self._parked[id(parked)]
            self.memory.resume(parked, request.tokens, request.prefix)
            sequence = parked
        else:
            sequence = self.memory.begin(request.tokens, request.first_wanted + 1, request.prefix)
        chunk = None
        try:
            wanted = room.next_chunk(request, sequence)
            chunk = None if wanted is None else self._map(wanted, spare=len(self.running))
        finally:
            if chunk is None and parked is not None:
                self._parked[id(parked)] = parked
            elif chunk is None:
                self.memory.abandon(sequence)
        if chunk is None:
            return None
        if self._loads.ask_again(request):
            self.memory.abandon(sequence)
            return None
        self._count_admission(request, sequence)
        self.waiting.remove(request)
        self.running.append(request)
        request.sequence, request.kept = sequence, None
        return chunk

    def _count_admission(self, request: Request, sequence: PagedSequence) -> None:
        if request.kept is not None:
            resumed = request.kept is sequence
            self.metrics.resumed_turns += resumed
            self.metrics.rematched_turns += not resumed
        if request.reused_tokens is None:
            self.metrics.queried_tokens += request.prompt_length
            self.metrics.hit_tokens += sequence.match.hit_tokens
            self.metrics.too_short_tokens += sequence.match.matched_tokens - sequence.match.hit_tokens
            self.memory.count_hit(sequence)
        request.begin_at(sequence.match)

    def _retire(self, request: Request, keep: bool = True) -> None:
        """Take an ended request out; a session's sequence stays, cached but pinned."""
        sequence = request.sequence
        if sequence is None:
            if request in self.waiting:  # not so where it was never submitted
                self.waiting.remove(request)
                self._loads.cancel(request)
            return
        self.running.remove(request)
        if keep and request.keep and request.num_completion_tokens:
            self.memory.publish(sequence)
            self._parked[id(sequence)] = sequence
        else:
            self.memory.release(sequence)
            request.sequence = None
