"""EvictionOrder: which checkpoint is given up next."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from kvfold.runtime.memory.horizon import Horizon
from kvfold.runtime.memory.tree_node import Kind, TreeNode

# Hits and losses that are taken for granted before anything is known: of the ends of what is kept, and of
# those that a longer prefix superseded.
PRIOR = {True: (1.0, 9.0), False: (0.2, 9.8)}
# What a checkpoint is worth, and when it was last used: what is worth the same goes in that order.
Worth = tuple[float, int]
# What was seen counts half after so many more hits or losses of its class.
HALF_LIFE = 200
# Entries that count no more are thrown out when there are twice as many as count, and this many.
LEAST_ENTRIES = 64


class EvictionOrder:
    """Checkpoints of a tree, the least worth first; choosing one costs O(log n).

    A checkpoint's worth is the tokens that it saves for a byte, times how often those of its class (why it
    was made, and whether a longer prefix goes on from it) were hit rather than lost; and it ages: worth is
    counted from what the last one given up was worth when this one was last used (GreedyDual-Size-Frequency,
    Cherkasova 1998).

    An entry is as good as it was when it was made: one whose node was used since is entered again when it
    comes to the front, and one that a longer prefix superseded when it was. A node's last entry counts. What
    else changes a worth, the rates of classes and a new checkpoint above, is seen at the next entry only. (To
    enter at once what lies below a new checkpoint was tried on Mooncake's trace: between 0.3 points less and
    0.1 more are found, docs/results.md.)
    """

    def __init__(self, horizons: Sequence[Horizon], page_bytes: Sequence[int]) -> None:
        """Nothing to give up; of groups with pages of so many bytes."""
        self._heap: list[tuple[Worth, int, TreeNode]] = []
        self._serial = 0
        self._age = self._popped = 0.0
        self._most_entries = LEAST_ENTRIES
        self._locals = [(law, page_bytes[law.index]) for law in horizons if law.is_local]
        self._longest = max([law.sink_pages + (law.tail_pages or 0) for law, _ in self._locals], default=0)
        self._tail_bytes = self._bytes_of_tails(self._longest)
        self._global_bytes = sum(page_bytes[law.index] for law in horizons if not law.is_local)
        self._earned = {(kind, leaf): list(PRIOR[leaf]) for kind in Kind for leaf in (False, True)}

    def push(self, node: TreeNode) -> None:
        """Enter a checkpoint, at what it is worth now."""
        self._serial += 1
        node.entry = self._serial
        heapq.heappush(self._heap, (self._worth(node), self._serial, node))
        if len(self._heap) > self._most_entries:
            self._heap = [each for each in self._heap if _counts(each[1], each[2])]
            heapq.heapify(self._heap)
            self._most_entries = max(LEAST_ENTRIES, 2 * len(self._heap))

    def pop(self) -> TreeNode | None:
        """Take out the checkpoint that is worth least; None where there is none."""
        while self._heap:
            then, entry, node = heapq.heappop(self._heap)
            if not _counts(entry, node):
                continue
            if self._worth(node) <= then:
                self._popped = then[0]
                return node
            self.push(node)
        return None

    def grow_old(self) -> None:
        """The checkpoint that was taken out last was given up."""
        self._age = max(self._age, self._popped)

    def touch(self, node: TreeNode) -> None:
        """A node was used just now."""
        node.age = self._age

    def note_hit(self, node: TreeNode) -> None:
        """A hit ended at a checkpoint."""
        self._note(node, 0)

    def note_loss(self, node: TreeNode) -> None:
        """A checkpoint was given up."""
        self._note(node, 1)

    def nodes(self) -> set[TreeNode]:
        """Every node that has an entry."""
        return {node for _, entry, node in self._heap if entry == node.entry}

    def _note(self, node: TreeNode, which: int) -> None:
        assert node.checkpoint is not None
        earned = self._earned[node.checkpoint, not node.children]
        for each in (0, 1):
            earned[each] *= 0.5 ** (1 / HALF_LIFE)
        earned[which] += 1

    def _worth(self, node: TreeNode) -> Worth:
        assert node.checkpoint is not None
        hits, losses = self._earned[node.checkpoint, not node.children]
        above = node.parent
        while above is not None and above.checkpoint is None:
            above = above.parent
        saved = node.end - (above.end if above is not None else 0)
        cost = self._tail_bytes if node.end >= self._longest else self._bytes_of_tails(node.end)
        if not node.children:
            cost += node.size * self._global_bytes
        return node.age + hits / (hits + losses) * saved / max(cost, 1), node.last_used

    def _bytes_of_tails(self, pages: int) -> int:
        """Bytes of the local pages that a checkpoint keeps."""
        return sum(size * len(law.needed(pages)) for law, size in self._locals)


def _counts(entry: int, node: TreeNode) -> bool:
    """Whether an entry is its node's last, and the node still a checkpoint of the tree."""
    return entry == node.entry and node.linked and node.checkpoint is not None
