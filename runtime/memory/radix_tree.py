"""RadixTree: which prefixes are cached, keyed by tokens, a node a run of whole pages.

Ownership: a node holds one reference to each of its pages of the global group, and to those of a local group
while a checkpoint needs them. A checkpoint is a length at which a hit may end: the pages of its window tail
and its sinks are kept in every local group. Other lengths are hits too wherever their tail happens to be
complete; a hit is shortened to such a length, never approximated.

Laws: who holds a node's global page holds those above it; a leaf ends in a checkpoint, or in a page that a
sequence holds: no page is kept that no hit can reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from kvfold.runtime.memory.eviction import EvictionOrder
from kvfold.runtime.memory.horizon import Horizon
from kvfold.runtime.memory.page_arena import PageArena
from kvfold.runtime.memory.paged_sequence import PagedSequence
from kvfold.runtime.memory.tree_node import Kind, Match, TreeNode, replace_pages


class RadixTree:
    """Cached prefixes of one engine, a root for each tenant.

    A tree lives and ends with its engine, so its pages are all of one model, plan and set of scales.
    Roots share the arena and the order of eviction, and no tenant finds what another one computed.

    Attributes:
        size: pages of all nodes, each counted once for all groups.
        evicted_pages: that eviction freed so far.
    """

    def __init__(self, horizons: Sequence[Horizon], arena: PageArena) -> None:
        """An empty tree over an arena, which stays the caller's."""
        self.size = self.evicted_pages = 0
        self._page_size = horizons[0].page_size
        self._arena = arena
        self._global = next((h.index for h in horizons if not h.is_local), None)
        self._locals = [h for h in horizons if h.is_local]
        self._order = EvictionOrder(horizons, arena.page_bytes)
        self._roots: dict[str, TreeNode] = {}
        self._page_bytes = self._page_size * np.dtype(np.int64).itemsize
        self._owners = np.full(arena.num_pages, None, object)
        self._clock = 0
        self._made = 0

    # Lookup

    def walk(self, tokens: np.ndarray, max_pages: int, tenant: str = "") -> Match:
        """What of the first pages of `tokens`, at most `max_pages` of them, is in a tenant's tree."""
        nodes: list[TreeNode] = []
        node, at, size = self._roots.get(tenant), 0, self._page_bytes
        data = tokens[: max_pages * self._page_size].tobytes()
        while node is not None and at < len(data):
            node = node.children.get(data[at : at + size])
            if node is None:
                break
            nodes.append(node)
            there = node.tokens
            if data.startswith(there, at):
                at += len(there)
            else:
                at += size * self._common(there, data[at : at + len(there)])
                break
        return Match(nodes, at // size)

    def usable(self, match: Match) -> int:
        """Pages of the longest hit in a match: the last length with sinks and tails complete."""
        length = match.length
        if not self._locals or not length:
            return length
        lengths = np.arange(1, length + 1)
        complete = np.ones(length, np.bool_)
        present = match.pages() >= 0
        for horizon in self._locals:
            assert horizon.tail_pages is not None
            have = np.concatenate([[0], np.cumsum(present[horizon.index])])
            tails = np.minimum(lengths, horizon.tail_pages)
            complete &= have[lengths] - have[lengths - tails] == tails
            sinks = np.minimum(lengths, horizon.sink_pages)
            complete &= have[sinks] == sinks
        ends = np.flatnonzero(complete)
        return int(ends[-1]) + 1 if len(ends) else 0

    def gone(self, match: Match) -> tuple[str, ...]:
        """Groups whose sinks or tail at the end of a match are not all there."""
        if not match.length:
            return ()
        pages = match.pages()
        return tuple(
            horizon.name
            for horizon in self._locals
            if any((pages[horizon.index, span] < 0).any() for span in horizon.spans(match.length))
        )

    def touch(self, match: Match) -> None:
        """Mark a match as just used."""
        self._clock += 1
        for node in match.nodes:
            node.last_used = self._clock
            self._order.touch(node)

    def take(self, match: Match, hit: int) -> None:
        """A sequence holds the first `hit` pages of a match: they were used, and can end a hit again."""
        nodes = [node for node in match.nodes if node.first < hit]
        taken = Match(nodes, hit)
        self.touch(taken)
        if nodes[-1].end == hit and nodes[-1].checkpoint is not None:
            self._order.note_hit(nodes[-1])
        if self._locals:
            self.mark(taken, Kind.BRANCH)
        else:
            self._cut(taken)

    # Insertion

    def insert(self, sequence: PagedSequence, num_pages: int, kind: Kind) -> None:
        """Cache the first `num_pages` pages of a sequence and make their end a checkpoint.

        Where the tree already holds a page, the sequence's table changes to it and its own page is
        released: afterwards no page of the path exists twice.
        """
        match = self._reach(sequence, num_pages)
        held, mine = match.pages(), sequence.tables[:, :num_pages]
        self._exchange(sequence, mine, held)
        wanted = np.zeros(mine.shape, np.bool_)
        if self._global is not None:
            wanted[self._global] = True
        for horizon in self._locals:
            for span in horizon.spans(num_pages):
                wanted[horizon.index, span] = True
        wanted &= held < 0
        assert (mine[wanted] >= 0).all(), "a page left its sequence before it was cached"
        self._arena.cache(self._arena.keys(np.where(wanted, mine, -1)))
        for node in match.nodes:
            part = slice(node.first, node.end)
            fresh = wanted[:, part]
            if fresh.any():
                node.pages[fresh] = mine[:, part][fresh]
                self._owners[self._arena.keys(np.where(fresh, node.pages, -1))] = node
        self.touch(match)
        self.mark(match, kind)

    def mark(self, match: Match, kind: Kind) -> None:
        """Make the end of a match, whose tails are complete, a checkpoint; it may be one already."""
        end = self._cut(match)
        if end.checkpoint is None:
            end.checkpoint = kind
            for node, row, part in self._needed(match.nodes, match.length):
                node.needed_by[row, part] += 1
        elif kind is Kind.SHARED:
            end.checkpoint = kind
        self._order.push(end)
        if len(match.nodes) > 1:
            above = match.nodes[-2]
            if above.checkpoint is not None:  # it may have been superseded
                self._order.push(above)

    def _reach(self, sequence: PagedSequence, num_pages: int) -> Match:
        """The path of a sequence's first pages, ending at a node's end; what the tree lacks is added."""
        match = self.walk(sequence.tokens, num_pages, sequence.tenant)
        node = self._cut(match) if match.nodes else self._root(sequence.tenant)
        if match.length < num_pages:
            first, size = match.length, self._page_size
            tokens = sequence.tokens[first * size : num_pages * size].tobytes()
            node = self._link(node, tokens, self._no_pages(num_pages - first), first)
            self.size += node.size
            match.nodes.append(node)
        return Match(match.nodes, num_pages)

    def _exchange(self, sequence: PagedSequence, mine: np.ndarray, held: np.ndarray) -> None:
        """Where the tree and a sequence hold different pages, the sequence changes to the tree's."""
        other = (held >= 0) & (mine >= 0) & (held != mine)
        if other.any():
            self._arena.retain(self._arena.keys(np.where(other, held, -1)))
            self._arena.release(self._arena.keys(np.where(other, mine, -1)))
            mine[other] = held[other]
            sequence.version += 1

    def _root(self, tenant: str) -> TreeNode:
        if tenant not in self._roots:
            self._roots[tenant] = TreeNode(tenant.encode(), None, self._no_pages(0), 0)
        return self._roots[tenant]

    def _no_pages(self, count: int) -> np.ndarray:
        return np.full((self._arena.num_groups, count), -1, np.int32)

    def _link(self, parent: TreeNode, tokens: bytes, pages: np.ndarray, first: int) -> TreeNode:
        self._made += 1
        node = TreeNode(tokens, parent, pages, first, self._made)
        parent.children[node.key(self._page_bytes)] = node
        return node

    def _cut(self, match: Match) -> TreeNode:
        """The node that a match ends at; where it ends within one, that is cut in two."""
        node = match.nodes[-1]
        if match.length == node.end:
            return node
        assert node.parent is not None
        size = match.length - node.first
        above = self._link(
            node.parent, node.tokens[: size * self._page_bytes], node.pages[:, :size], node.first
        )
        above.needed_by = node.needed_by[:, :size].copy()
        above.last_used, above.hits, above.age = node.last_used, node.hits, node.age
        node.tokens = node.tokens[size * self._page_bytes :]
        node.pages, node.needed_by = node.pages[:, size:].copy(), node.needed_by[:, size:].copy()
        above.pages = above.pages.copy()
        self._owners[self._arena.keys(above.pages)] = above
        node.first, node.parent = match.length, above
        above.children[node.key(self._page_bytes)] = node
        match.nodes[-1] = above
        return above

    def _common(self, some: bytes, other: bytes) -> int:
        """How many whole pages two runs begin with alike."""
        size = min(len(some), len(other)) // self._page_bytes * self._page_bytes
        differ = np.frombuffer(some, np.int64, size // 8) != np.frombuffer(other, np.int64, size // 8)
        first = int(differ.argmax()) if differ.any() else len(differ)
        return first // self._page_size

    def _needed(self, nodes: Sequence[TreeNode], length: int) -> Iterator[tuple[TreeNode, int, slice]]:
        """(node, local group, pages) that a checkpoint at `length`, the end of these nodes, needs."""
        spans = [
            (law.index, span) for law in self._locals for span in law.spans(length) if span.start < span.stop
        ]
        tails = min((span.start for _, span in spans if span.stop == length), default=length)
        sinks = max((span.stop for _, span in spans if span.stop < length), default=0)
        for node in nodes:
            first, end = node.first, node.end
            if sinks <= first and end <= tails:
                continue
            for row, span in spans:
                start, stop = max(span.start, first), min(span.stop, end)
                if start < stop:
                    yield node, row, slice(start - first, stop - first)

    # Eviction

    def evict(self, enough: Callable[[], bool], pages: int) -> None:
        """Give up checkpoints, those worth least first, until it is enough, or nothing idle is left.

        Args:
            enough: whether it is.
            pages: of a plan without local groups, where every page is a length to hit, so many of a prefix's
                end are given up at once.
        """
        busy = []
        while not enough():
            node = self._order.pop()
            if node is None:
                break
            if not self._give_up(node, pages):
                busy.append(node)
        for node in busy:
            self._order.push(node)

    def _give_up(self, node: TreeNode, pages: int) -> bool:
        """Free what only this checkpoint keeps; False, with nothing changed, where that is nothing."""
        if not self._locals:
            return self._shorten(node, pages)
        nodes = node.path()
        if self._is_held(nodes):
            return False
        self._order.note_loss(node)
        node.checkpoint = None
        for each in self._drop_need(nodes):
            gone = (each.needed_by == 0) & (each.pages >= 0)
            if self._global is not None:
                gone[self._global] = False
            if gone.any():
                self._uncache(np.where(gone, each.pages, -1))
                each.pages[gone] = -1
        while node.parent is not None and not node.children and node.checkpoint is None:
            parent = node.parent
            if not self._shorten(node, node.size):
                break
            node = parent
        return True

    def _is_held(self, nodes: Sequence[TreeNode]) -> bool:
        """Whether these nodes end in a leaf of whose checkpoint a sequence holds every page."""
        leaf = nodes[-1]
        if leaf.children or self._global is None or self._trailing_idle(leaf):
            return False
        pages = [node.pages[row, part] for node, row, part in self._needed(nodes, leaf.end)]
        rows = [row for _, row, _ in self._needed(nodes, leaf.end)]
        keys = [self._arena.keys_of(row, part) for row, part in zip(rows, pages, strict=True)]
        return not any(self._arena.is_idle(each).any() for each in keys)

    def _drop_need(self, nodes: Sequence[TreeNode]) -> dict[TreeNode, None]:
        """The nodes of which the checkpoint at the end of all needs pages no longer."""
        touched: dict[TreeNode, None] = {}
        for node, row, part in self._needed(nodes, nodes[-1].end):
            node.needed_by[row, part] -= 1
            touched[node] = None
        return touched

    def _uncache(self, pages: np.ndarray) -> None:
        keys = self._arena.keys(pages)
        self._owners[keys] = None
        self.evicted_pages += self._arena.uncache(keys)

    def _trailing_idle(self, node: TreeNode) -> int:
        """How many of the last pages of a node's global group no sequence holds."""
        if self._global is None:
            return node.size
        held = np.flatnonzero(~self._arena.is_idle(self._arena.keys(self._only_global(node.pages))))
        return node.size - (int(held[-1]) + 1 if len(held) else 0)

    def _only_global(self, pages: np.ndarray) -> np.ndarray:
        only = np.full_like(pages, -1)
        if self._global is not None:
            only[self._global] = pages[self._global]
        return only

    def _shorten(self, leaf: TreeNode, pages: int) -> bool:
        """Take idle pages, at most so many, from the end of a leaf; False where there is none."""
        parent, count = leaf.parent, min(pages, self._trailing_idle(leaf))
        if leaf.children or not count:
            return False
        assert parent is not None
        kept = leaf.size - count
        self.size -= count
        self._uncache(leaf.pages[:, kept:])
        if kept:
            leaf.tokens = leaf.tokens[: kept * self._page_bytes]
            leaf.pages, leaf.needed_by = leaf.pages[:, :kept].copy(), leaf.needed_by[:, :kept].copy()
            if leaf.checkpoint is not None:
                self._order.push(leaf)
            return True
        del parent.children[leaf.key(self._page_bytes)]
        leaf.parent = None
        if parent.parent is None:
            if not parent.children:
                del self._roots[parent.tokens.decode()]
        elif not self._locals and not parent.children:  # every page ends a hit: the parent's end is a leaf's
            parent.checkpoint = parent.checkpoint or Kind.BRANCH
            self._order.push(parent)
        elif parent.checkpoint is not None:
            self._order.push(parent)
        return True

    def relocate(self, group: int, sources: np.ndarray, targets: np.ndarray) -> None:
        """Pages of a group moved: hold them where they are now."""
        firsts = self._arena.keys_of(group, sources)
        owners, self._owners[firsts] = self._owners[firsts], None
        self._owners[self._arena.keys_of(group, targets)] = owners
        for node in {owner for owner in owners if owner is not None}:
            replace_pages(node.pages[group], sources, targets)

    # Inspection

    @property
    def clock(self) -> int:
        """Logical time: counts hits and insertions."""
        return self._clock

    @property
    def num_groups(self) -> int:
        """Horizon groups."""
        return self._arena.num_groups

    def roots(self, tenant: str | None = None) -> dict[str, TreeNode]:
        """Roots by tenant: of one, or of all."""
        if tenant is None:
            return dict(self._roots)
        return {tenant: self._roots[tenant]} if tenant in self._roots else {}

    def nodes(self) -> list[TreeNode]:
        """Every node but the roots."""
        found: list[TreeNode] = []
        stack = [node for root in self._roots.values() for node in root.children.values()]
        while stack:
            node = stack.pop()
            found.append(node)
            stack.extend(node.children.values())
        return found

    def check_integrity(self) -> None:
        """Check the laws of this module; quadratic, for tests and idle moments."""
        nodes, queued = self.nodes(), self._order.nodes()
        assert sum(node.size for node in nodes) == self.size
        needed = {node: np.zeros_like(node.needed_by) for node in nodes}
        for node in nodes:
            assert node.parent is not None and node.first == node.parent.end and node.size > 0
            assert len(node.tokens) == node.size * self._page_bytes
            if node.checkpoint is None:
                assert node.children or not self._trailing_idle(node), "no hit can reach a page"
                continue
            assert node in queued or (not self._locals and node.children), "a checkpoint cannot be evicted"
            match = Match(node.path(), node.end)
            assert self.usable(match) == node.end, "a checkpoint's tail is not complete"
            for each, row, part in self._needed(match.nodes, node.end):
                needed[each][row, part] += 1
        for node in nodes:
            assert all(owner is node for owner in self._owners[self._arena.keys(node.pages)])
            assert (node.needed_by == needed[node]).all()
            assert self._global is None or (node.pages[self._global] >= 0).all(), "a global page is lost"
            for horizon in self._locals:
                row = horizon.index
                assert ((node.pages[row] >= 0) == (needed[node][row] > 0)).all()
