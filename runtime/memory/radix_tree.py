"""RadixTree: which prefixes are cached, keyed by tokens, one page an edge.

Ownership: a node holds one reference to its page of the global group, and to its page of a local
group while a checkpoint needs it. A checkpoint is a length at which a hit may end: the pages of its
window tail and its sinks are kept in every local group. Shorter lengths are hits too wherever their
tail happens to be complete; a hit is shortened to such a length, never approximated.

Order of eviction: local pages of checkpoints that a longer one superseded; then of the other
checkpoints, least recently used first; whole nodes only from the leaves, least recently used first.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from kvfold.runtime.memory.horizon import Horizon
from kvfold.runtime.memory.page_pool import PagePool
from kvfold.runtime.memory.paged_sequence import PagedSequence
from kvfold.runtime.memory.tree_node import TreeNode


class RadixTree:
    """Cached prefixes of one engine, a root for each tenant.

    A tree lives and ends with its engine, so its pages are all of one model, plan and set of scales.
    Roots share pools and the order of eviction, and no tenant finds what another one computed.
    """

    def __init__(self, horizons: Sequence[Horizon], pools: Sequence[PagePool]) -> None:
        """An empty tree over the pools, which stay owned by the caller."""
        self._roots: dict[str, TreeNode] = {}
        self.evicted_pages = 0
        self._page_size = horizons[0].page_size
        self._pools = pools
        self._global = next((h.index for h in horizons if not h.is_local), None)
        self._locals = [h for h in horizons if h.is_local]
        self._checkpoints: set[TreeNode] = set()
        self._leaves: list[tuple[int, int, TreeNode]] = []
        self._clock = 0
        self._serial = 0
        self._made = self._removed = 0

    # Lookup

    def walk(self, tokens: np.ndarray, max_pages: int, tenant: str = "") -> list[TreeNode]:
        """A tenant's nodes that match the first pages of `tokens`, at most `max_pages` of them."""
        path: list[TreeNode] = []
        node = self._roots.get(tenant)
        if node is None:
            return path
        data, step = tokens[: max_pages * self._page_size].tobytes(), self._page_size * tokens.itemsize
        for start in range(0, max_pages * step, step):
            child = node.children.get(data[start : start + step])
            if child is None:
                break
            path.append(child)
            node = child
        return path

    def usable(self, path: Sequence[TreeNode]) -> int:
        """Pages of the longest hit along a path: the last length with sinks and tails complete."""
        if not self._locals:
            return len(path)
        hit = 0
        runs = [0] * len(self._locals)
        for depth, node in enumerate(path, 1):
            complete = True
            for which, horizon in enumerate(self._locals):
                assert horizon.tail_pages is not None
                present = node.pages[horizon.index] >= 0
                if not present and depth <= horizon.sink_pages:
                    return hit
                runs[which] = runs[which] + 1 if present else 0
                complete &= runs[which] >= min(depth, horizon.tail_pages)
            if complete:
                hit = depth
        return hit

    def gone(self, path: Sequence[TreeNode]) -> tuple[str, ...]:
        """Groups whose sinks or tail at the end of a path are not all there."""
        return tuple(
            horizon.name
            for horizon in self._locals
            if any(path[position].pages[horizon.index] < 0 for position in horizon.needed(len(path)))
        )

    def touch(self, path: Sequence[TreeNode]) -> None:
        """Mark a path as just used."""
        self._clock += 1
        for node in path:
            node.last_used = self._clock

    # Insertion

    def insert(self, sequence: PagedSequence, num_pages: int, shared: bool = False) -> None:
        """Cache the first `num_pages` pages of a sequence and make their end a checkpoint.

        Where the tree already holds a page, the sequence's table changes to it and its own page is
        released: afterwards no page of the path exists twice, and who holds a node's global page
        holds those of all its ancestors.
        """
        path = self.walk(sequence.tokens, num_pages, sequence.tenant)
        self._extend(path, sequence, num_pages)
        needed = {h.index: set(h.needed(num_pages)) for h in self._locals}
        for position, node in enumerate(path):
            for group, table in enumerate(sequence.tables):
                mine, cached = int(table[position]), node.pages[group]
                if cached >= 0:
                    self._exchange(group, table, position, mine, cached)
                elif group == self._global or position in needed[group]:
                    assert mine >= 0, f"page {position} of group {group} left before it was cached"
                    self._pools[group].cache(mine)
                    node.pages[group] = mine
        sequence.version += 1
        self.touch(path)
        self.mark(path)
        path[-1].shared |= shared

    def _extend(self, path: list[TreeNode], sequence: PagedSequence, num_pages: int) -> None:
        """Add the nodes that the path lacks."""
        if len(path) == num_pages:
            return
        node = path[-1] if path else self._root(sequence.tenant)
        size = self._page_size
        for index in range(len(path), num_pages):
            key = sequence.tokens[index * size : (index + 1) * size].tobytes()
            self._made += 1
            child = TreeNode(key, node, len(self._pools), self._made)
            node.children[child.key] = child
            path.append(child)
            node = child
        self._queue(node)

    def _root(self, tenant: str) -> TreeNode:
        if tenant not in self._roots:
            self._roots[tenant] = TreeNode(tenant.encode(), None, len(self._pools))
        return self._roots[tenant]

    def _exchange(self, group: int, table: np.ndarray, position: int, mine: int, cached: int) -> None:
        if mine < 0 or mine == cached:
            return
        self._pools[group].retain(cached)
        self._pools[group].release(mine)
        table[position] = cached

    def mark(self, path: Sequence[TreeNode]) -> None:
        """Make the end of a path, whose tails are complete, a checkpoint."""
        end = path[-1]
        if end.checkpoint:
            return
        end.checkpoint = True
        self._checkpoints.add(end)
        for horizon in self._locals:
            for position in horizon.needed(len(path)):
                path[position].needed_by[horizon.index] += 1

    # Eviction

    def evict(self, group: int, count: int) -> None:
        """Free at least `count` idle pages of a group; pages that a sequence holds stay its own.

        There are as many: a tail can always be dropped, and by the law of `insert` an idle global
        page has only idle pages below it.
        """
        if group == self._global:
            self._evict_leaves(count)
        else:
            self._evict_tails(next(h for h in self._locals if h.index == group), count)

    def _evict_leaves(self, count: int) -> None:
        assert self._global is not None
        pool, busy, target = self._pools[self._global], [], self._pools[self._global].num_free + count
        while self._leaves and pool.num_free < target:
            last_used, _, node = heapq.heappop(self._leaves)
            if not node.linked or node.children:
                continue
            if last_used < node.last_used:
                self._queue(node)
            elif not pool.is_idle(node.pages[self._global]):
                busy.append(node)
            else:
                self._remove(node)
        for node in busy:
            self._queue(node)

    def _evict_tails(self, horizon: Horizon, count: int) -> None:
        pool = self._pools[horizon.index]
        target = pool.num_free + count
        for node in sorted(self._checkpoints, key=_tail_priority):
            if pool.num_free >= target:
                return
            path = node.path()
            pages = (path[position].pages[horizon.index] for position in horizon.needed(len(path)))
            if any(map(pool.is_idle, pages)):
                self._unmark(path)
                self._prune(node)

    def _remove(self, node: TreeNode) -> None:
        """Take a leaf out of the tree; where its parent's tail is complete, the parent ends hits instead."""
        parent = node.parent
        assert parent is not None and not node.children
        if node.checkpoint:
            path = node.path()
            if parent.depth and self.usable(path[:-1]) == len(path) - 1:
                self.mark(path[:-1])
            self._unmark(path)
        for group, page in enumerate(node.pages):
            if page >= 0:
                self._drop_page(node, group)
        self._removed += 1
        del parent.children[node.key]
        node.parent = None
        if parent.children:
            return
        if parent.depth:
            self._queue(parent)
        else:
            del self._roots[parent.key.decode()]

    def _unmark(self, path: Sequence[TreeNode]) -> None:
        """Drop a checkpoint and the local pages that nothing else needs."""
        end = path[-1]
        end.checkpoint = end.shared = False
        self._checkpoints.remove(end)
        for horizon in self._locals:
            for position in horizon.needed(len(path)):
                node = path[position]
                node.needed_by[horizon.index] -= 1
                if node.needed_by[horizon.index] == 0:
                    self._drop_page(node, horizon.index)

    def _prune(self, node: TreeNode) -> None:
        """Without a global group, remove the leaves that no checkpoint is left to use."""
        if self._global is not None:
            return
        while node.parent is not None and not node.children and not node.checkpoint:
            parent = node.parent
            self._remove(node)
            node = parent

    def _drop_page(self, node: TreeNode, group: int) -> None:
        page, node.pages[group] = node.pages[group], -1
        if self._pools[group].uncache(page):
            self.evicted_pages += 1

    def _queue(self, node: TreeNode) -> None:
        """Enter a leaf into the eviction queue; entries are checked for truth when they are taken out."""
        if self._global is not None:
            self._serial += 1
            heapq.heappush(self._leaves, (node.last_used, self._serial, node))

    # Inspection

    @property
    def size(self) -> int:
        """How many nodes there are, but the roots."""
        return self._made - self._removed

    @property
    def clock(self) -> int:
        """Logical time: counts hits and insertions."""
        return self._clock

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

    def held(self, group: int) -> list[int]:
        """Pages of a group that the tree holds."""
        return [node.pages[group] for node in self.nodes() if node.pages[group] >= 0]

    def check_integrity(self) -> None:
        """Check the laws of this module; quadratic, for tests and idle moments."""
        nodes = self.nodes()
        assert len(nodes) == self.size
        needed: dict[tuple[TreeNode, int], int] = {}
        assert {node for node in nodes if node.checkpoint} == self._checkpoints
        for node in self._checkpoints:
            path = node.path()
            assert self.usable(path) == len(path), "a checkpoint's tail is not complete"
            for horizon in self._locals:
                for position in horizon.needed(len(path)):
                    key = path[position], horizon.index
                    needed[key] = needed.get(key, 0) + 1
        queued = {entry[2] for entry in self._leaves}
        for node in nodes:
            if self._global is not None:
                assert node.pages[self._global] >= 0, "a node lost its global page"
                assert node.children or node in queued, "a leaf cannot be evicted"
            for horizon in self._locals:
                wanted = needed.get((node, horizon.index), 0)
                assert node.needed_by[horizon.index] == wanted
                assert (node.pages[horizon.index] >= 0) == (wanted > 0)


def _tail_priority(node: TreeNode) -> tuple[bool, int]:
    """Superseded tails first: inner ones, neither marked as shared nor at a branch point; then LRU."""
    return node.shared or len(node.children) != 1, node.last_used
