"""A copy of the most used part of the tree, to be looked at while the tree goes on.

The owner of the tree copies between two steps, so it does little: a bounded number of nodes, as numbers in
tables. Whoever looks makes boxes of them, in a thread of its own.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from kvfold.runtime.memory.radix_tree import RadixTree
from kvfold.runtime.memory.tree_node import TreeNode

MAX_CHAINS = 500
MAX_PAGES = 4096
MAX_LOOKS = 8192


class Chain(NamedTuple):
    """Nodes with one child each, all reused by as many requests; a tenant's root is a chain of none.

    Attributes:
        number: of its first node; 0 for a root.
        parent: place of the chain above among all; -1 for a root.
        tenant: whose it is.
        first: pages above it.
        hits: requests that reused it.
        pages: int32 [groups, any], a table for each of its nodes.
        last_used: logical time of the last hit or insertion through it.
        checkpoints: pages from the tree's root at which a hit may end.
    """

    number: int
    parent: int
    tenant: str
    first: int
    hits: int
    pages: Sequence[np.ndarray] = ()
    last_used: int = 0
    checkpoints: Sequence[int] = ()


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

    At most MAX_PAGES pages in MAX_CHAINS chains; of a node's children those that were added last, where all
    that are looked at would be more than MAX_LOOKS.

    Attributes:
        clock: logical time of the copy.
        size: pages of the whole tree, of all tenants, each counted once for all groups.
        copied: of these, in the copy.
    """

    def __init__(self, tree: RadixTree, tenant: str | None) -> None:
        """Copy, in the thread of the tree's owner; `tenant` None is all."""
        self.clock = tree.clock
        self.size = tree.prefixes.size
        self.copied = 0
        self._groups = tree.num_groups
        self._chains: list[Chain] = []
        self._others: list[int] = []
        self._looks = MAX_LOOKS
        self._waiting: list[tuple[int, int, int, TreeNode, int]] = []
        for name, root in tree.prefixes.roots(tenant).items():
            self._add(Chain(0, -1, name, 0, 0), root.children)
        while self._waiting and self.copied < MAX_PAGES and len(self._chains) < MAX_CHAINS:
            *_, node, parent = heapq.heappop(self._waiting)
            self._copy_chain(node, parent)
        for *_, parent in self._waiting:
            self._others[parent] += 1
        self._waiting.clear()

    def boxes(self, page_size: int) -> Iterator[Box]:
        """What it shows, each after the one above it; in any thread."""
        for chain, others in zip(self._chains, self._others, strict=True):
            kept = [(pages >= 0).sum(axis=1).tolist() for pages in chain.pages]
            yield Box(
                number=chain.number,
                parent=chain.parent,
                tenant=chain.tenant,
                first=chain.first * page_size,
                tokens=sum(pages.shape[1] for pages in chain.pages) * page_size,
                pages=tuple(sum(column) for column in zip(*kept, strict=True)) or (0,) * self._groups,
                hits=chain.hits,
                last_used=chain.last_used,
                checkpoints=tuple(pages * page_size for pages in chain.checkpoints),
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
        number, first, hits = node.number, node.first, node.hits
        tables, checkpoints, last_used = [], [], 0
        while True:
            room = MAX_PAGES - self.copied
            tables.append(node.pages[:, :room].copy())
            self.copied += tables[-1].shape[1]
            last_used = max(last_used, node.last_used)
            if node.size > room:
                children = {node.tokens: node}  # its end is left out, and all below
                break
            if node.checkpoint is not None:
                checkpoints.append(node.end)
            children = node.children
            if len(children) != 1 or self.copied == MAX_PAGES:
                break
            (child,) = children.values()
            if child.hits != hits:
                break
            node = child
        tenant = self._chains[parent].tenant
        self._add(Chain(number, parent, tenant, first, hits, tables, last_used, checkpoints), children)
