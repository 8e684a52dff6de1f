"""TreeNode: one page of tokens in the radix tree."""

from __future__ import annotations


class TreeNode:
    """An edge of one page of tokens and what is cached of it.

    Attributes:
        key: the page's tokens as bytes; the edge from `parent`.
        depth: pages from the root to this node's end.
        pages: per group, the page the node holds a reference to; -1 is none.
        needed_by: per local group, how many checkpoints need this page.
            Law: a local page is held exactly while needed_by > 0.
        checkpoint: a hit may end here: the tails of all local groups are kept.
        shared: the caller marked this length as the end of a shared prompt.
        last_used: logical time of the last hit or insertion through this node.
        hits: requests that reused this page.
        number: counts the nodes of the tree, those that are gone too.
    """

    __slots__ = (
        "checkpoint",
        "children",
        "depth",
        "hits",
        "key",
        "last_used",
        "needed_by",
        "number",
        "pages",
        "parent",
        "shared",
    )

    def __init__(self, key: bytes, parent: TreeNode | None, num_groups: int, number: int = 0) -> None:
        """A node without pages, not yet linked from its parent."""
        self.key = key
        self.parent = parent
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.children: dict[bytes, TreeNode] = {}
        self.pages = [-1] * num_groups
        self.needed_by = [0] * num_groups
        self.checkpoint = False
        self.shared = False
        self.last_used = 0
        self.hits = 0
        self.number = number

    @property
    def linked(self) -> bool:
        """Whether the node is still in the tree."""
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
