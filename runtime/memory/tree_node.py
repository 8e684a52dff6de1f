"""TreeNode: a run of whole pages in the radix tree; Match: the nodes that a prompt begins with."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import numpy as np


class Kind(Enum):
    """Why a hit may end at a checkpoint."""

    END = "a sequence ended"
    PROMPT = "a prompt ended: a retry has the same one"
    SHARED = "a marked system prompt ended"
    BRANCH = "a prompt left the tree here, or a hit ended"
    GUESS = "prefixes may part here"


class TreeNode:
    """The pages between two places where prefixes part or a hit may end, and what is cached of them.

    Attributes:
        tokens: of its pages, as bytes; its first page's are the edge from `parent`.
        first: pages above it.
        pages: int32 [groups, size], the pages that the tree holds; -1 is none.
        needed_by: int32 [groups, size], how many checkpoints need each page of a local group.
            Law: a local page is held exactly while needed_by > 0.
        checkpoint: why a hit may end at its end; None where none may.
        last_used: logical time of the last hit or insertion through it.
        hits: requests that reused its pages.
        entry: number of its place in the order of eviction.
        age: how old that order was when it was last used.
        number: counts the nodes of the tree, those that are gone too.
    """

    __slots__ = (
        "age",
        "checkpoint",
        "children",
        "entry",
        "first",
        "hits",
        "last_used",
        "needed_by",
        "number",
        "pages",
        "parent",
        "tokens",
    )

    def __init__(
        self, tokens: bytes, parent: TreeNode | None, pages: np.ndarray, first: int, number: int = 0
    ) -> None:
        """A node not yet linked from its parent."""
        self.tokens = tokens
        self.parent = parent
        self.first = first
        self.children: dict[bytes, TreeNode] = {}
        self.pages = pages
        self.needed_by = np.zeros(pages.shape, np.int32)
        self.checkpoint: Kind | None = None
        self.last_used = 0
        self.entry = 0
        self.age = 0.0
        self.hits = 0
        self.number = number

    @property
    def size(self) -> int:
        """Its pages."""
        return int(self.pages.shape[1])

    @property
    def end(self) -> int:
        """Pages from the root to its end."""
        return self.first + self.size

    @property
    def linked(self) -> bool:
        """Whether it is still in the tree."""
        return self.parent is not None

    def path(self) -> list[TreeNode]:
        """The nodes from the root's child down to this one."""
        nodes: list[TreeNode] = []
        node = self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        nodes.reverse()
        return nodes


class Match(NamedTuple):
    """What of a prompt is in the tree.

    Attributes:
        nodes: from the root's child down; the last one may match in part.
        length: pages that match.
    """

    nodes: list[TreeNode]
    length: int

    def pages(self) -> np.ndarray:
        """Pages of all groups, int32 [groups, length]; -1 is none."""
        pages: np.ndarray = np.concatenate([node.pages for node in self.nodes], axis=1)
        return pages[:, : self.length]


def replace_pages(row: np.ndarray, sources: np.ndarray, targets: np.ndarray) -> bool:
    """In a row of pages, change each of `sources` to its target; whether there was any.

    Args:
        row: int32 [any], changed in place.
        sources: int64 [moved], growing.
        targets: int64 [moved].
    """
    places = np.flatnonzero(np.isin(row, sources))
    row[places] = targets[np.searchsorted(sources, row[places])]
    return len(places) > 0
