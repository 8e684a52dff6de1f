"""A copy of the most used part of the tree, to be looked at while the tree goes on.

The owner of the tree copies between two steps, so it does little: a bounded number of nodes, as numbers in
one list. Whoever looks makes boxes of them, in a thread of its own.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from kvfold.runtime.memory.radix_tree import RadixTree
from kvfold.runtime.memory.tree_node import TreeNode

MAX_CHAINS = 500
MAX_NODES = 4096
MAX_LOOKS = 8192


class Chain(NamedTuple):
    """Nodes with one child each, all reused by as many requests; a tenant's root is a chain of none.

    Attributes:
        number: of its first node; 0 for a root.
        parent: place of the chain above among all; -1 for a root.
        tenant: whose it is.
        above: nodes above it.
        hits: requests that reused it.
        start: place of its first node among all that were copied.
        end: place after its last one.
    """

    number: int
    parent: int
    tenant: str
    above: int
    hits: int
    start: int
    end: int


class Box(NamedTuple):
    """A chain as it is shown.

    Attributes:
        number: names it while its first node lives; 0 for a tenant's root.
        parent: place of the box above among all; -1 for a root.
        tenant: whose it is.
        first: tokens above it.
        tokens: its own; 0 for a root.
        pages: by group, how many of its pages are kept.
        hits: requests that reused it.
        last_used: logical time of the last hit or insertion through it.
        checkpoints: tokens from the start at which a hit may end, as its window is kept.
        others: branches below it that are left out.
    """

    number: int
    parent: int
    tenant: str
    first: int
    tokens: int
    pages: tuple[int, ...]
    hits: int
    last_used: int
    checkpoints: tuple[int, ...]
    others: int


class TreeCopy:
    """The most used nodes of one tenant or of all, then the latest.

    At most MAX_NODES nodes in MAX_CHAINS chains; of a node's children those that were added last, where all
    that are looked at would be more than MAX_LOOKS.

    Attributes:
        clock: logical time of the copy.
        size: nodes of the whole tree, of all tenants.
        copied: of these, in the copy.
    """

    def __init__(self, tree: RadixTree, tenant: str | None) -> None:
        """Copy, in the thread of the tree's owner; `tenant` None is all."""
        self.clock = tree.clock
        self.size = tree.size
        self._groups = 0
        self._chains: list[Chain] = []
        self._numbers: list[int] = []
        self._others: list[int] = []
        self._looks = MAX_LOOKS
        self._waiting: list[tuple[int, int, int, TreeNode, int]] = []
        self.copied = 0
        for name, root in tree.roots(tenant).items():
            self._groups = len(root.pages)
            self._add(Chain(0, -1, name, 0, 0, 0, 0), root.children)
        while self._waiting and self.copied < MAX_NODES and len(self._chains) < MAX_CHAINS:
            *_, node, parent = heapq.heappop(self._waiting)
            self._copy_chain(node, parent)
        for *_, parent in self._waiting:
            self._others[parent] += 1
        self._waiting.clear()

    def boxes(self, page_size: int) -> Iterator[Box]:
        """What it shows, each after the one above it; in any thread."""
        width = self._groups + 2
        for chain, others in zip(self._chains, self._others, strict=True):
            rows = [self._numbers[at * width : (at + 1) * width] for at in range(chain.start, chain.end)]
            first = chain.above * page_size
            yield Box(
                number=chain.number,
                parent=chain.parent,
                tenant=chain.tenant,
                first=first,
                tokens=len(rows) * page_size,
                pages=tuple(sum(row[group] >= 0 for row in rows) for group in range(self._groups)),
                hits=chain.hits,
                last_used=max((row[-2] for row in rows), default=0),
                checkpoints=tuple(first + at * page_size for at, row in enumerate(rows, 1) if row[-1]),
                others=others,
            )

    def _add(self, chain: Chain, children: dict[bytes, TreeNode]) -> None:
        """A chain, and what waits below it."""
        parent = len(self._chains)
        room = MAX_CHAINS - parent
        self._chains.append(chain)
        seen = list(islice(reversed(children.values()), self._looks))
        self._looks -= len(seen)
        wanted = [node for node in seen if node.hits]
        wanted += islice((node for node in seen if not node.hits), room)
        self._others.append(len(children) - len(wanted))
        for node in wanted:
            heapq.heappush(self._waiting, (-node.hits, -node.last_used, node.number, node, parent))

    def _copy_chain(self, node: TreeNode, parent: int) -> None:
        number, above, hits, start = node.number, node.depth - 1, node.hits, self.copied
        numbers, left = self._numbers, MAX_NODES - start
        while True:
            numbers += node.pages
            numbers += (node.last_used, node.checkpoint)
            left -= 1
            children = node.children
            if len(children) != 1 or not left:
                break
            (child,) = children.values()
            if child.hits != hits:
                break
            node = child
        self.copied = MAX_NODES - left
        tenant = self._chains[parent].tenant
        self._add(Chain(number, parent, tenant, above, hits, start, self.copied), children)
