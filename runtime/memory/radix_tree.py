"""RadixTree: which prefixes are cached, and the pages that it holds for them.

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
from kvfold.runtime.memory.token_tree import TokenTree
from kvfold.runtime.memory.tree_node import Kind, Match, TreeNode, replace_pages


class RadixTree:
    """Cached prefixes of one engine, a root for each tenant.

    A tree lives and ends with its engine, so its pages are all of one model, plan and set of scales.
    Roots share the arena and the order of eviction, and no tenant finds what another one computed.

    Attributes:
        prefixes: its nodes, by tokens.
        evicted_pages: that eviction freed so far.
        clock: logical time: counts hits and insertions.
    """

    def __init__(self, horizons: Sequence[Horizon], arena: PageArena) -> None:
        """An empty tree over an arena, which stays the caller's."""
        self.prefixes = TokenTree(horizons[0].page_size, arena.num_groups)
        self.evicted_pages = 0
        self.clock = 0
        self._arena = arena
        self._global = next((h.index for h in horizons if not h.is_local), None)
        self._locals = [h for h in horizons if h.is_local]
        self._order = EvictionOrder(horizons, arena.page_bytes)
        self._owners = np.full(arena.num_pages, None, object)

    @property
    def num_groups(self) -> int:
        """Horizon groups."""
        return self._arena.num_groups

    # Lookup

    def walk(self, tokens: np.ndarray, max_pages: int, tenant: str = "") -> Match:
        """What of the first pages of `tokens`, at most `max_pages` of them, is in a tenant's tree."""
        return self.prefixes.walk(tokens, max_pages, tenant)

    def usable(self, match: Match) -> int:
        """Pages of the longest hit in a match: the last length with sinks and tails complete."""
        if not self._locals or not match.length:
            return match.length
        # Another thread may look while the owner cuts a node: what is there counts.
        present = match.pages() >= 0
        length = present.shape[1]
        lengths = np.arange(1, length + 1)
        complete = np.ones(length, np.bool_)
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

    def take(self, match: Match, hit: int) -> None:
        """A sequence now holds the first `hit` pages of a match: they were used, and can end a hit again."""
        taken = Match([node for node in match.nodes if node.first < hit], hit)
        self._touch(taken)
        if self._locals:
            self._mark(taken, Kind.BRANCH)
        else:
            self._cut(taken)

    def count_hit(self, match: Match) -> None:
        """A request that was let in reused a match."""
        for node in match.nodes:
            node.hits += 1
        end = match.nodes[-1]
        if end.checkpoint is not None and end.end == match.length:
            self._order.note_hit(end)

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
        self._touch(match)
        self._mark(match, kind)

    def _reach(self, sequence: PagedSequence, num_pages: int) -> Match:
        """The path of a sequence's first pages, ending at a node's end; what the tree lacks is added."""
        match = self.walk(sequence.tokens, num_pages, sequence.tenant)
        if match.nodes:
            self._cut(match)
        return self.prefixes.extend(match, sequence.tokens, num_pages, sequence.tenant)

    def _exchange(self, sequence: PagedSequence, mine: np.ndarray, held: np.ndarray) -> None:
        """Where the tree and a sequence hold different pages, the sequence changes to the tree's."""
        other = (held >= 0) & (mine >= 0) & (held != mine)
        if other.any():
            self._arena.retain(self._arena.keys(np.where(other, held, -1)))
            self._arena.release(self._arena.keys(np.where(other, mine, -1)))
            mine[other] = held[other]
            sequence.version += 1

    def _touch(self, match: Match) -> None:
        self.clock += 1
        for node in match.nodes:
            node.last_used = self.clock
            self._order.touch(node)

    def _cut(self, match: Match) -> None:
        """Make a match end at a node's end."""
        above = self.prefixes.cut(match)
        if above is not None:
            self._owners[self._arena.keys(above.pages)] = above

    def _mark(self, match: Match, kind: Kind) -> None:
        """Make the end of a match, whose tails are complete, a checkpoint; it may be one already."""
        self._cut(match)
        end = match.nodes[-1]
        if end.checkpoint is None:
            end.checkpoint = kind
            for node, row, part in self._needed(match.nodes):
                node.needed_by[row, part] += 1
        elif kind is Kind.SHARED:
            end.checkpoint = kind
        self._order.push(end)
        if len(match.nodes) > 1:
            above = match.nodes[-2]
            if above.checkpoint is not None:  # it may have been superseded
                self._order.push(above)

    def _needed(self, nodes: Sequence[TreeNode]) -> Iterator[tuple[TreeNode, int, slice]]:
        """(node, local group, pages) that a checkpoint at the end of these nodes needs."""
        length = nodes[-1].end
        spans = [(law.index, span) for law in self._locals for span in law.spans(length)]
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
        held = []
        while not enough():
            node = self._order.pop()
            if node is None:
                break
            freed = self._give_up(node) if self._locals else self._shorten(node, max(pages, node.size // 16))
            if freed:
                self._order.grow_old()
            else:
                held.append(node)
        for node in held:  # as good as used just now, or each eviction would look at them again
            self._order.touch(node)
            self._order.push(node)

    def _give_up(self, node: TreeNode) -> bool:
        """Free what only this checkpoint keeps; False, with nothing changed, where sequences hold it all."""
        nodes = node.path()
        if self._is_held(nodes):
            return False
        self._order.note_loss(node)
        node.checkpoint = None
        touched: dict[TreeNode, None] = {}
        for each, row, part in self._needed(nodes):
            each.needed_by[row, part] -= 1
            touched[each] = None
        for each in touched:
            gone = (each.needed_by == 0) & (each.pages >= 0)
            if self._global is not None:
                gone[self._global] = False
            if gone.any():
                self._uncache(np.where(gone, each.pages, -1))
                each.pages[gone] = -1
        while nodes and not nodes[-1].children and nodes[-1].checkpoint is None:
            if not self._shorten(nodes[-1], nodes[-1].size):
                break
            nodes.pop()
        return True

    def _is_held(self, nodes: Sequence[TreeNode]) -> bool:
        """Whether sequences hold every page that giving up the checkpoint at the end of all could free."""
        end = nodes[-1]
        if self._global is not None and not end.children and self._trailing_idle(end):
            return False
        parts = ((row, node.pages[row, part]) for node, row, part in self._needed(nodes))
        return not any(self._arena.is_idle(self._arena.keys_of(row, pages)).any() for row, pages in parts)

    def _uncache(self, pages: np.ndarray) -> None:
        keys = self._arena.keys(pages)
        self._owners[keys] = None
        self.evicted_pages += self._arena.uncache(keys)

    def _trailing_idle(self, node: TreeNode) -> int:
        """How many of the last pages of a node's global group no sequence holds."""
        if self._global is None:
            return node.size
        held = ~self._arena.is_idle(self._arena.keys_of(self._global, node.pages[self._global]))
        places = np.flatnonzero(held)
        return node.size - (int(places[-1]) + 1 if len(places) else 0)

    def _shorten(self, leaf: TreeNode, pages: int) -> bool:
        """Take idle pages, at most so many, from the end of a leaf; whether it is gone or became shorter."""
        parent, count = leaf.parent, min(pages, self._trailing_idle(leaf))
        if leaf.children or not count:
            return False
        assert parent is not None
        if not self._locals and count == leaf.size:
            self._order.note_loss(leaf)
        self._uncache(leaf.pages[:, leaf.size - count :])
        self.prefixes.shorten(leaf, count)
        end = leaf if leaf.linked else parent
        if not self._locals and end.linked and not end.children:  # every page ends a hit: so does this one
            end.checkpoint = end.checkpoint or Kind.BRANCH
        if end.checkpoint is not None:
            self._order.push(end)
        return True

    def relocate(self, group: int, sources: np.ndarray, targets: np.ndarray) -> None:
        """Pages of a group moved: hold them where they are now."""
        before = self._arena.keys_of(group, sources)
        owners, self._owners[before] = self._owners[before], None
        self._owners[self._arena.keys_of(group, targets)] = owners
        for node in {owner for owner in owners if owner is not None}:
            replace_pages(node.pages[group], sources, targets)

    def check_integrity(self) -> None:
        """Check the laws of this module; quadratic, for tests and idle moments."""
        self.prefixes.check_integrity()
        nodes, queued = self.prefixes.nodes(), self._order.nodes()
        needed = {node: np.zeros_like(node.needed_by) for node in nodes}
        for node in nodes:
            if node.checkpoint is None:
                assert node.children or not self._trailing_idle(node), "no hit can reach a page"
                continue
            assert node in queued or (not self._locals and node.children), "a checkpoint cannot be evicted"
            path = node.path()
            assert self.usable(Match(path, node.end)) == node.end, "a checkpoint's tail is not complete"
            for each, row, part in self._needed(path):
                needed[each][row, part] += 1
        for node in nodes:
            assert all(owner is node for owner in self._owners[self._arena.keys(node.pages)])
            assert (node.needed_by == needed[node]).all()
            assert self._global is None or (node.pages[self._global] >= 0).all(), "a global page is lost"
            for horizon in self._locals:
                row = horizon.index
                assert ((node.pages[row] >= 0) == (needed[node][row] > 0)).all()
