"""KvMemory: gives sequences their pages, shares them through the radix tree, takes them back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from weakref import WeakSet

import numpy as np

from kvfold.runtime.engine.protocol import EngineInfo, PageStore
from kvfold.runtime.memory.horizon import horizons
from kvfold.runtime.memory.page_arena import PageArena
from kvfold.runtime.memory.paged_sequence import PagedSequence
from kvfold.runtime.memory.radix_tree import RadixTree
from kvfold.runtime.memory.tier_link import Load, TierLink
from kvfold.runtime.memory.tiers.kv_tier import KvTier
from kvfold.runtime.memory.tree_node import Kind, Match
from kvfold.runtime.metrics import PoolUsage, PrefixMatch

# Pages, a power of two: prompts shorter than this are not worth a checkpoint that nobody asked for.
LEAST_ROUND = 64
# Checkpoints that go into the tier: a prompt's end is soon superseded by its reply's.
WRITTEN = frozenset({Kind.END, Kind.SHARED, Kind.BRANCH})


@dataclass(frozen=True)
class Prefix:
    """What other requests are likely to share: lengths, in tokens, and with whom.

    Attributes:
        prompt_length: a retry has the same prompt.
        shared_length: end of a system prompt that the caller marked; 0 is none.
        borders: where other prompts may part from this one.
        tenant: whose prefixes these are; nobody else's requests find them.
    """

    prompt_length: int
    shared_length: int = 0
    borders: tuple[int, ...] = ()
    tenant: str = ""


class KvMemory:
    """All pages of an engine.

    A sequence's life: `begin` (reuses a prefix), then per step `allocate` before and `commit` after
    it, at last `release`. Only full pages are shared, so a page that is written has one holder.
    """

    def __init__(self, info: EngineInfo, store: PageStore, tier: KvTier | None = None) -> None:
        """An empty arena of the engine's size, an empty tree; below them a tier, or none."""
        self.page_size = info.plan.page_size
        self.horizons = horizons(info.plan)
        for group, slabs in info.num_slabs.items():  # an engine may have had another owner
            store.decommit(group, range(slabs))
        self.arena = PageArena(info, store, self._relocate)
        self.tree = RadixTree(self.horizons, self.arena)
        self.link = None if tier is None else TierLink(tier, self.horizons, self.arena.page_bytes, store)
        self._live: WeakSet[PagedSequence] = WeakSet()

    def bytes_needed(self, length: int) -> int:
        """Bytes of a sequence of `length` tokens that has the memory to itself, a page of them a step."""
        return self.arena.slab_bytes(self._peak(length))

    def can_run(self, length: int) -> bool:
        """Whether a sequence of `length` tokens can run, if it has the memory to itself."""
        return self.arena.holds(self._peak(length))

    def usage(self) -> dict[str, PoolUsage]:
        """Pages by group name."""
        rows = zip(self.horizons, self.arena.page_bytes, self.arena.idle, self.arena.busy, strict=True)
        return {law.name: PoolUsage(size, idle, busy) for law, size, idle, busy in rows}

    def match_tokens(self, tokens: np.ndarray, length: int, tenant: str = "") -> int:
        """Tokens, of the first `length`, that a sequence begun now would reuse."""
        return self.tree.usable(self.tree.walk(tokens, self._hit_limit(length), tenant)) * self.page_size

    def fetch(self, tokens: np.ndarray, length: int, tenant: str) -> Load | None:
        """Begin to read what the tier has of the first `length` tokens beyond the tree; None if nothing."""
        if self.link is None:
            return None
        limit = self._hit_limit(length)
        known = self.tree.usable(self.tree.walk(tokens, limit, tenant))
        return self.link.load(tokens, limit, known, tenant)

    def take_in(self, load: Load) -> int:
        """Put what was read into the tree, as if it had been computed here; returns its tokens.

        0, and nothing changed, where nothing whole came in time, or there is no room.
        """
        assert self.link is not None
        prefix = load.prefix
        if prefix is None:
            return 0
        sequence = PagedSequence(load.tokens, self.arena.num_groups, self._capacity(load.tokens), load.tenant)
        self._live.add(sequence)
        have = self._hold_known(sequence, prefix.pages)
        places = [
            law.needed(prefix.pages) if law.is_local else list(range(have, prefix.pages))
            for law in self.horizons
        ]
        counts = [len(each) for each in places]
        sequence.num_pages = prefix.pages
        try:
            if not self._make_room(counts, counts):
                return 0
            for table, each, pages in zip(sequence.tables, places, self.arena.allocate(counts), strict=True):
                table[each] = pages
            self.link.copy_in(prefix, sequence, have)
            self.tree.insert(sequence, prefix.pages, Kind.END)
        finally:
            self._give_back(sequence)
        return prefix.pages * self.page_size

    def _hold_known(self, sequence: PagedSequence, pages: int) -> int:
        """Map what the tree has of the first `pages` global pages; returns how many."""
        match = self.tree.walk(sequence.tokens, pages, sequence.tenant)
        for law in self.horizons:
            if not law.is_local and match.length:
                known = match.pages()[law.index]
                sequence.tables[law.index, : match.length] = known
                self.arena.retain(self.arena.keys_of(law.index, known))
        return match.length

    def begin(self, tokens: np.ndarray, length: int, prefix: Prefix) -> PagedSequence:
        """A sequence over the longest cached prefix of its first `length` tokens.

        Args:
            tokens: int64, the owner's buffer; its size is the most the sequence will ever have.
            length: what a hit must be shorter than; the known tokens, to get the last one's logits.
            prefix: which lengths are worth caching on the way.
        """
        sequence = PagedSequence(tokens, self.arena.num_groups, self._capacity(tokens), prefix.tenant)
        match = self.tree.walk(tokens, self._hit_limit(length), prefix.tenant)
        hit = self.tree.usable(match)
        gone = self.tree.gone(match) if match.length > hit else ()
        if hit:
            self._take(sequence, match, hit)
        self._live.add(sequence)
        sequence.match = PrefixMatch(match.length * self.page_size, sequence.num_computed, gone)
        self._plan_checkpoints(sequence, prefix)
        if match.length > hit:  # where the prompt leaves the tree, even if the hit was shortened
            sequence.checkpoints.setdefault(match.length, Kind.BRANCH)
        return sequence

    def resume(self, sequence: PagedSequence, tokens: np.ndarray, prefix: Prefix) -> None:
        """Carry on with a kept sequence; the first `num_computed` of `tokens` are its own."""
        sequence.extend(tokens, self._capacity(tokens))
        sequence.match = PrefixMatch(sequence.num_computed, sequence.num_computed, resumed=True)
        self._plan_checkpoints(sequence, prefix)

    def abandon(self, sequence: PagedSequence) -> None:
        """Give back a sequence that was not let in: nothing was computed for it."""
        self._give_back(sequence)

    def count_hit(self, sequence: PagedSequence) -> None:
        """Note in the tree what a sequence that was let in reused."""
        pages = sequence.match.hit_tokens // self.page_size
        if pages and not sequence.match.resumed:
            self.tree.count_hit(self.tree.walk(sequence.tokens, pages, sequence.tenant))

    def allocate(self, sequence: PagedSequence, end: int, spare: int = 0) -> bool:
        """Map pages for tokens up to `end`, evicting cached ones where needed.

        False, with nothing changed or evicted, where so many pages, and `spare` more of each group, do not
        fit beside those that sequences hold.
        """
        first = sequence.num_pages
        if end <= first * self.page_size:
            return True
        last = ceil(end / self.page_size)
        count, groups = last - first, self.arena.num_groups
        if not self._make_room([count] * groups, [count + spare] * groups):
            return False
        sequence.tables[:, first:last] = self.arena.allocate([count] * groups)
        sequence.num_pages = last
        sequence.version += 1
        return True

    def would_fit(
        self, sequence: PagedSequence, end: int, spare: int, given_up: Iterable[PagedSequence]
    ) -> bool:
        """Whether `allocate` would find room if these sequences were released before."""
        count = ceil(end / self.page_size) - sequence.num_pages + spare
        keys = [self.arena.keys(each.tables[:, : each.num_pages]) for each in given_up]
        freed = self.arena.freed_by(np.concatenate(keys))
        return self.arena.fits([count - each for each in freed], beside_idle=False)

    def commit(self, sequence: PagedSequence, end: int) -> None:
        """After a step: cache the checkpoints that were passed, then free what left the window.

        In this order, since the step began at or before each checkpoint: its tail is still mapped.
        """
        full = end // self.page_size
        new = full > sequence.num_computed // self.page_size
        sequence.num_computed = end
        if not new:
            return
        if sequence.checkpoints:
            for pages in sorted(pages for pages in sequence.checkpoints if pages <= full):
                self._cache(sequence, pages, sequence.checkpoints.pop(pages))
        self._free_behind(sequence, full)

    def publish(self, sequence: PagedSequence) -> None:
        """Put all full pages of a sequence into the tree; the sequence keeps its references."""
        full = sequence.num_computed // self.page_size
        if full:
            self._cache(sequence, full, Kind.END)

    def release(self, sequence: PagedSequence) -> None:
        """Cache what the sequence computed, and give back everything it holds."""
        assert not sequence.released, "a sequence was released twice"
        self.publish(sequence)
        self._give_back(sequence)

    def check_integrity(self, sequences: Iterable[PagedSequence]) -> None:
        """Check that every page has exactly its holders, given all live sequences."""
        self.tree.check_integrity()
        self.arena.check_integrity(
            (node.pages for node in self.tree.prefixes.nodes()), (sequence.tables for sequence in sequences)
        )

    def _cache(self, sequence: PagedSequence, pages: int, kind: Kind) -> None:
        """Put a prefix of a sequence into the tree, and below it what is likely to be wanted again."""
        self.tree.insert(sequence, pages, kind)
        if self.link is not None and kind in WRITTEN:
            self.link.write(sequence, pages)

    def _give_back(self, sequence: PagedSequence) -> None:
        self.arena.release(self.arena.keys(sequence.tables[:, : sequence.num_pages]))
        self._live.discard(sequence)
        sequence.released = True

    def _make_room(self, counts: Sequence[int], wanted: Sequence[int]) -> bool:
        """Evict until so many pages of each group are free.

        False, with nothing evicted, where `wanted` do not fit beside the pages that sequences hold.
        """
        arena = self.arena
        if not arena.fits(wanted, beside_idle=False):
            return False
        if not arena.fits(counts, beside_idle=True):
            self.tree.evict(lambda: arena.fits(counts, beside_idle=True), max(counts))
        return True

    def _peak(self, length: int) -> list[int]:
        return [law.peak_pages(length, min(length, self.page_size)) for law in self.horizons]

    def _hit_limit(self, length: int) -> int:
        """Most pages a hit may have: one token at least is computed, for its logits."""
        return (length - 1) // self.page_size

    def _capacity(self, tokens: np.ndarray) -> int:
        return ceil(len(tokens) / self.page_size)

    def _plan_checkpoints(self, sequence: PagedSequence, prefix: Prefix) -> None:
        full = sequence.num_computed // self.page_size
        end = self._hit_limit(prefix.prompt_length)
        guesses = round_lengths(end) | {border // self.page_size for border in prefix.borders}
        wanted = dict.fromkeys(guesses, Kind.GUESS)
        wanted |= {end: Kind.PROMPT, prefix.shared_length // self.page_size: Kind.SHARED}
        sequence.checkpoints = {pages: kind for pages, kind in wanted.items() if pages > full}

    def _take(self, sequence: PagedSequence, match: Match, hit: int) -> None:
        """Map a hit: every page of the global group, sinks and tail of the local ones."""
        taken = np.full((self.arena.num_groups, hit), -1, np.int32)
        pages = match.pages()
        for law in self.horizons:
            for span in law.spans(hit):
                taken[law.index, span] = pages[law.index, span]
            sequence.first_kept[law.index] = law.first_kept(hit)
        self.arena.retain(self.arena.keys(taken))
        sequence.tables[:, :hit] = taken
        sequence.num_pages = hit
        sequence.num_computed = hit * self.page_size
        self.tree.take(match, hit)

    def _free_behind(self, sequence: PagedSequence, full: int) -> None:
        """Give back the pages that left their group's window when there are `full` full ones."""
        left = []
        for law in self.horizons:
            kept, first = law.first_kept(full), sequence.first_kept[law.index]
            if kept > first:
                sequence.first_kept[law.index] = kept
                left.append((law.index, slice(max(law.sink_pages, first), kept)))
        if not left:
            return
        keys = []
        for group, span in left:
            keys.append(self.arena.keys_of(group, sequence.tables[group, span]))
            sequence.tables[group, span] = -1
        self.arena.release(np.concatenate(keys))
        sequence.version += 1

    def _relocate(self, group: int, sources: np.ndarray, targets: np.ndarray) -> None:
        """Pages of a group moved: change all tables that name them."""
        self.tree.relocate(group, sources, targets)
        for sequence in self._live:
            sequence.relocate(group, sources, targets)


def round_lengths(pages: int) -> set[int]:
    """Lengths below `pages` with ever more of the last bits cleared, from LEAST_ROUND on.

    Prompts that share no marked end may part anywhere: these few lengths lie near the end, and ever farther
    from it. Example: 750 pages give 704, 640 and 512.
    """
    found, unit = set(), LEAST_ROUND
    while unit <= pages:
        found.add(pages // unit * unit)
        unit *= 2
    return found
