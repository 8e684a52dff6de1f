"""EvictionOrder: which checkpoint is given up next."""

from __future__ import annotations

import heapq

from kvfold.runtime.memory.tree_node import Kind, TreeNode

Score = tuple[bool, int]


class EvictionOrder:
    """Checkpoints of a tree, the least worth first; choosing one costs O(log n).

    An entry is as good as it was when it was made: one whose node was used since is entered again when it
    comes to the front, and a node that became worth less is entered again when it did. Its last one counts.
    """

    def __init__(self) -> None:
        """Nothing to give up."""
        self._heap: list[tuple[Score, int, TreeNode]] = []
        self._serial = 0

    def push(self, node: TreeNode) -> None:
        """Enter a checkpoint, at what it is worth now."""
        self._serial += 1
        node.entry = self._serial
        heapq.heappush(self._heap, (score(node), self._serial, node))

    def pop(self) -> TreeNode | None:
        """Take out the checkpoint that is worth least; None where there is none."""
        while self._heap:
            then, entry, node = heapq.heappop(self._heap)
            if entry != node.entry or not node.linked or node.checkpoint is None:
                continue
            if score(node) <= then:
                return node
            self.push(node)
        return None

    def nodes(self) -> set[TreeNode]:
        """Every node that has an entry."""
        return {node for _, entry, node in self._heap if entry == node.entry}


def score(node: TreeNode) -> Score:
    """Superseded ends first: those that one longer prefix goes on from; then the least recently used."""
    superseded = node.checkpoint is not Kind.SHARED and len(node.children) == 1
    return not superseded, node.last_used
