"""PagedSequence: the pages of one token sequence, a block table for each horizon group."""

from __future__ import annotations

import numpy as np

from kvfold.runtime.memory.tiers.chain import Chain
from kvfold.runtime.memory.tree_node import Kind, replace_pages
from kvfold.runtime.metrics import PrefixMatch


class PagedSequence:
    """What a request (or a waiting session) holds of the KV memory.

    Attributes:
        tokens: int64, the owner's buffer; positions [0, num_computed) are in the cache.
        tenant: whose tree it reads and feeds.
        tables: int32 [groups, pages], page ids in order of position; -1 is freed or not yet mapped.
        version: grows with each change of the tables.
        num_pages: pages mapped so far; the same in every group, freed ones included.
        num_computed: tokens whose KV is in the cache.
        match: what of these was there when the sequence began.
        first_kept: per group, pages before this index (sinks aside) are freed.
        chain: keys of its prefixes in a tier, where it was handed to one.
        checkpoints: page counts at which the prefix goes into the tree on the way, and why.
        released: everything was given back; the sequence is dead.
    """

    __slots__ = (
        "__weakref__",
        "chain",
        "checkpoints",
        "first_kept",
        "match",
        "num_computed",
        "num_pages",
        "released",
        "tables",
        "tenant",
        "tokens",
        "version",
    )

    def __init__(self, tokens: np.ndarray, num_groups: int, capacity: int, tenant: str = "") -> None:
        """An empty sequence whose tables have room for `capacity` pages."""
        self.tokens = tokens
        self.tenant = tenant
        self.tables = np.full((num_groups, capacity), -1, np.int32)
        self.version = 0
        self.num_pages = 0
        self.num_computed = 0
        self.match = PrefixMatch()
        self.first_kept = [0] * num_groups
        self.chain: Chain | None = None
        self.checkpoints: dict[int, Kind] = {}
        self.released = False

    def extend(self, tokens: np.ndarray, capacity: int) -> None:
        """Carry on with a longer buffer whose first `num_computed` tokens are the same."""
        self.tokens = tokens
        self.chain = None
        grown = np.full((len(self.tables), capacity), -1, np.int32)
        grown[:, : self.num_pages] = self.tables[:, : self.num_pages]
        self.tables = grown

    def relocate(self, group: int, sources: np.ndarray, targets: np.ndarray) -> None:
        """Pages of a group moved: map them where they are now."""
        moved = replace_pages(self.tables[group, : self.num_pages], sources, targets)
        self.version += moved
