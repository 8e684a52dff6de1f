"""TokenTree: prefixes as runs of whole pages of tokens; which nodes there are, not what they hold."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from kvfold.runtime.memory.tree_node import Match, TreeNode


class TreeWatcher(Protocol):
    """Hears which prefixes are cached, in the engine's thread; must not block."""

    def stored(self, tenant: str, tokens: bytes, first: int) -> None:
        """The pages of a prefix, int64 tokens, from number `first` on are there now."""
        ...

    def removed(self, tenant: str, tokens: bytes, first: int) -> None:
        """The pages of a prefix from number `first` on are gone."""
        ...


class TokenTree:
    """Nodes by their tokens, a root for each tenant: no tenant finds what another one's prompts were.

    Attributes:
        size: pages of all nodes, each counted once for all groups.
        watcher: told of what comes and goes; None where nobody is.
    """

    def __init__(self, page_size: int, num_groups: int) -> None:
        """No node yet."""
        self.size = 0
        self.watcher: TreeWatcher | None = None
        self._page_size = page_size
        self._page_bytes = page_size * np.dtype(np.int64).itemsize
        self._num_groups = num_groups
        self._roots: dict[str, TreeNode] = {}
        self._made = 0

    def walk(self, tokens: np.ndarray, max_pages: int, tenant: str) -> Match:
        """What of the first pages of `tokens`, int64 and at most `max_pages` of them, a tenant's tree has."""
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

    def extend(self, match: Match, tokens: np.ndarray, pages: int, tenant: str) -> Match:
        """The path of the first `pages` of `tokens`, whose beginning is a match that ends at a node's end."""
        if match.length == pages:
            return match
        parent = match.nodes[-1] if match.nodes else self._root(tenant)
        run = tokens[match.length * self._page_size : pages * self._page_size].tobytes()
        node = self._link(parent, run, self._no_pages(pages - match.length), match.length)
        self.size += node.size
        if self.watcher is not None:
            whole = tokens[: pages * self._page_size].tobytes()
            self.watcher.stored(tenant, whole, match.length)
        return Match([*match.nodes, node], pages)

    def cut(self, match: Match) -> TreeNode | None:
        """Where a match ends within a node, cut that in two; returns the upper part, which is new.

        The lower part keeps its place in all tables, and the match ends at the upper one.
        """
        node = match.nodes[-1]
        if match.length == node.end:
            return None
        assert node.parent is not None
        size = match.length - node.first
        upper, lower = node.tokens[: size * self._page_bytes], node.tokens[size * self._page_bytes :]
        above = self._link(node.parent, upper, node.pages[:, :size].copy(), node.first)
        above.needed_by = node.needed_by[:, :size].copy()
        above.last_used, above.hits, above.age = node.last_used, node.hits, node.age
        node.tokens, node.first, node.parent = lower, match.length, above
        node.pages, node.needed_by = node.pages[:, size:].copy(), node.needed_by[:, size:].copy()
        above.children[lower[: self._page_bytes]] = node
        match.nodes[-1] = above
        return above

    def shorten(self, leaf: TreeNode, pages: int) -> None:
        """Take pages from the end of a leaf; with its last one it goes."""
        kept, parent = leaf.size - pages, leaf.parent
        assert parent is not None and not leaf.children
        self.size -= pages
        if self.watcher is not None:
            nodes = leaf.path()
            root, whole = nodes[0].parent, b"".join(node.tokens for node in nodes)
            assert root is not None
            self.watcher.removed(root.tokens.decode(), whole, leaf.end - pages)
        if kept:
            leaf.tokens = leaf.tokens[: kept * self._page_bytes]
            leaf.pages, leaf.needed_by = leaf.pages[:, :kept].copy(), leaf.needed_by[:, :kept].copy()
            return
        del parent.children[leaf.tokens[: self._page_bytes]]
        leaf.parent = None
        if parent.parent is None and not parent.children:
            del self._roots[parent.tokens.decode()]

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
        """Check that nodes follow on each other and are counted."""
        nodes = self.nodes()
        assert sum(node.size for node in nodes) == self.size
        for node in nodes:
            assert node.parent is not None and node.first == node.parent.end and node.size > 0
            assert len(node.tokens) == node.size * self._page_bytes
            assert node.parent.children[node.tokens[: self._page_bytes]] is node

    def _root(self, tenant: str) -> TreeNode:
        if tenant not in self._roots:
            self._roots[tenant] = TreeNode(tenant.encode(), None, self._no_pages(0), 0)
        return self._roots[tenant]

    def _no_pages(self, count: int) -> np.ndarray:
        return np.full((self._num_groups, count), -1, np.int32)

    def _link(self, parent: TreeNode, tokens: bytes, pages: np.ndarray, first: int) -> TreeNode:
        self._made += 1
        node = TreeNode(tokens, parent, pages, first, self._made)
        parent.children[tokens[: self._page_bytes]] = node
        return node

    def _common(self, some: bytes, other: bytes) -> int:
        """How many whole pages two runs begin with alike."""
        size = min(len(some), len(other)) // self._page_bytes * self._page_size
        differ = np.frombuffer(some, np.int64, size) != np.frombuffer(other, np.int64, size)
        first = int(differ.argmax()) if differ.any() else len(differ)
        return first // self._page_size
