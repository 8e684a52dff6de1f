"""KvMemory: gives sequences their pages, shares them through the radix tree, takes them back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

import numpy as np

from kvfold.runtime.engine.protocol import EngineInfo
from kvfold.runtime.memory.horizon import horizons
from kvfold.runtime.memory.page_pool import PagePool
from kvfold.runtime.memory.paged_sequence import PagedSequence
from kvfold.runtime.memory.radix_tree import RadixTree
from kvfold.runtime.metrics import PrefixMatch


@dataclass(frozen=True)
class Prefix:
    """What other requests are likely to share: lengths, in tokens, and with whom.

    Attributes:
        prompt_length: a retry has the same prompt.
        shared_length: end of a system prompt that the caller marked; 0 is none.
        tenant: whose prefixes these are; nobody else's requests find them.
    """

    prompt_length: int
    shared_length: int = 0
    tenant: str = ""


class KvMemory:
    """All pages of an engine.

    A sequence's life: `begin` (reuses a prefix), then per step `allocate` before and `commit` after
    it, at last `release`. Only full pages are shared, so a page that is written has one holder.
    """

    def __init__(self, info: EngineInfo) -> None:
        """Pools of the engine's sizes, an empty tree."""
        self.page_size = info.plan.page_size
        self.horizons = horizons(info.plan)
        self.pools = [PagePool(info.num_pages[horizon.name]) for horizon in self.horizons]
        self.tree = RadixTree(self.horizons, self.pools)

    def shortfall(self, length: int, chunk: int) -> tuple[str, int, int] | None:
        """Why a sequence of `length` tokens can never run: (group, pages it needs, pages there are)."""
        for horizon, pool in zip(self.horizons, self.pools, strict=True):
            pages = horizon.peak_pages(length, min(chunk, length))
            if pages > pool.num_pages:
                return horizon.name, pages, pool.num_pages
        return None

    def match_tokens(self, tokens: np.ndarray, length: int, tenant: str = "") -> int:
        """Tokens, of the first `length`, that a sequence begun now would reuse."""
        return self.tree.usable(self.tree.walk(tokens, self._hit_limit(length), tenant)) * self.page_size

    def begin(self, tokens: np.ndarray, length: int, prefix: Prefix) -> PagedSequence:
        """A sequence over the longest cached prefix of its first `length` tokens.

        Args:
            tokens: int64, the owner's buffer; its size is the most the sequence will ever have.
            length: what a hit must be shorter than; the known tokens, to get the last one's logits.
            prefix: which lengths are worth caching on the way.
        """
        sequence = PagedSequence(tokens, len(self.pools), self._capacity(tokens), prefix.tenant)
        path = self.tree.walk(tokens, self._hit_limit(length), prefix.tenant)
        hit = self.tree.usable(path)
        self._take(sequence, [node.pages for node in path[:hit]])
        if hit:
            self.tree.touch(path[:hit])
            self.tree.mark(path[:hit])
        sequence.match = PrefixMatch(
            len(path) * self.page_size, sequence.num_computed, self.tree.gone(path) if len(path) > hit else ()
        )
        self._plan_checkpoints(sequence, prefix)
        # A branch point is where the prompt leaves the tree, even if the hit was shortened.
        if len(path) > hit and len(path) not in sequence.checkpoints:
            sequence.checkpoints = sorted([*sequence.checkpoints, len(path)])
        return sequence

    def resume(self, sequence: PagedSequence, tokens: np.ndarray, prefix: Prefix) -> None:
        """Carry on with a kept sequence; the first `num_computed` of `tokens` are its own."""
        sequence.extend(tokens, self._capacity(tokens))
        sequence.match = PrefixMatch(sequence.num_computed, sequence.num_computed, resumed=True)
        self._plan_checkpoints(sequence, prefix)

    def count_hit(self, sequence: PagedSequence) -> None:
        """Note in the tree what a sequence that was let in reused."""
        pages = sequence.match.hit_tokens // self.page_size
        for node in self.tree.walk(sequence.tokens, pages, sequence.tenant):
            node.hits += 1

    def allocate(self, sequence: PagedSequence, end: int, spare: int = 0) -> bool:
        """Map pages for tokens up to `end`, evicting cached ones where needed.

        False, with nothing changed or evicted, where fewer than that many pages and `spare` more
        are free or idle.
        """
        first = sequence.num_pages
        if end <= first * self.page_size:
            return True
        last = ceil(end / self.page_size)
        count = last - first
        if any(pool.num_free + pool.num_idle < count + spare for pool in self.pools):
            return False
        for group, (table, pool) in enumerate(zip(sequence.tables, self.pools, strict=True)):
            if pool.num_free < count:
                self.tree.evict(group, count - pool.num_free)
            table[first:last] = pool.allocate(count)
        sequence.num_pages = last
        sequence.version += 1
        return True

    def commit(self, sequence: PagedSequence, end: int) -> None:
        """After a step: cache the checkpoints that were passed, then free what left the window.

        In this order, since the step began at or before each checkpoint: its tail is still mapped.
        """
        full = end // self.page_size
        new = full > sequence.num_computed // self.page_size
        sequence.num_computed = end
        if not new:
            return
        while sequence.checkpoints and sequence.checkpoints[0] <= full:
            pages = sequence.checkpoints.pop(0)
            self.tree.insert(sequence, pages, shared=pages == sequence.shared_pages)
        for horizon in self.horizons:
            kept = horizon.first_kept(full)
            if kept > sequence.first_kept[horizon.index]:
                self._free_before(sequence, horizon.index, kept, horizon.sink_pages)

    def publish(self, sequence: PagedSequence) -> None:
        """Put all full pages of a sequence into the tree; the sequence keeps its references."""
        full = sequence.num_computed // self.page_size
        if full:
            self.tree.insert(sequence, full)

    def release(self, sequence: PagedSequence) -> None:
        """Cache what the sequence computed, and give back everything it holds."""
        assert not sequence.released, "a sequence was released twice"
        self.publish(sequence)
        for table, pool in zip(sequence.tables, self.pools, strict=True):
            for page in table[: sequence.num_pages].tolist():
                if page >= 0:
                    pool.release(page)
        sequence.released = True

    def check_integrity(self, sequences: Iterable[PagedSequence]) -> None:
        """Check that every page has exactly its holders, given all live sequences."""
        live = list(sequences)
        self.tree.check_integrity()
        for group, pool in enumerate(self.pools):
            tables = [sequence.tables[group].tolist() for sequence in live]
            pool.check_integrity(
                self.tree.held(group), (page for table in tables for page in table if page >= 0)
            )

    def _hit_limit(self, length: int) -> int:
        """Most pages a hit may have: one token at least is computed, for its logits."""
        return (length - 1) // self.page_size

    def _capacity(self, tokens: np.ndarray) -> int:
        return ceil(len(tokens) / self.page_size)

    def _plan_checkpoints(self, sequence: PagedSequence, prefix: Prefix) -> None:
        full = sequence.num_computed // self.page_size
        sequence.shared_pages = prefix.shared_length // self.page_size
        wanted = {sequence.shared_pages, self._hit_limit(prefix.prompt_length)}
        sequence.checkpoints = sorted(pages for pages in wanted if pages > full)

    def _take(self, sequence: PagedSequence, pages: list[list[int]]) -> None:
        """Map a hit: every page of the global group, sinks and tail of the local ones."""
        for horizon, table, pool in zip(self.horizons, sequence.tables, self.pools, strict=True):
            for position in horizon.needed(len(pages)):
                page = pages[position][horizon.index]
                pool.retain(page)
                table[position] = page
            sequence.first_kept[horizon.index] = horizon.first_kept(len(pages))
        sequence.num_pages = len(pages)
        sequence.num_computed = len(pages) * self.page_size

    def _free_before(self, sequence: PagedSequence, group: int, kept: int, sink_pages: int) -> None:
        table, pool = sequence.tables[group], self.pools[group]
        for position in range(max(sink_pages, sequence.first_kept[group]), kept):
            pool.release(int(table[position]))
            table[position] = -1
        sequence.first_kept[group] = kept
        sequence.version += 1
