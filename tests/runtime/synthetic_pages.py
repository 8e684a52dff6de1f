"""The page store of the synthetic engine: it tells who forgets to commit or exceeds the budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvfold.plugins.contract.fold_plan import HorizonGroup
from kvfold.runtime.engine.protocol import EngineInfo


class SyntheticPages:
    """Pages of token ids, one more than the id, so that memory just committed (zeros) holds no token.

    Attributes:
        caches: int64 [pages, page_size] of each bank, by layer.
        committed: whether a page has memory, bool [pages] of each group.
    """

    def __init__(self, info: EngineInfo) -> None:
        """No page has memory."""
        self._info = info
        self._groups = {group.name: group for group in info.plan.groups}
        self.committed = {name: np.zeros(count, bool) for name, count in info.num_pages.items()}
        self.caches = {
            bank.layer: np.zeros((info.num_pages[bank.group], info.plan.page_size), np.int64)
            for bank in info.plan.banks
        }

    def commit(self, group: str, slabs: Sequence[int]) -> None:
        for pages in self._slabs(group, slabs):
            assert not self.committed[group][pages].any(), f"a slab of {group} is committed twice"
            self.committed[group][pages] = True
            for bank in self._groups[group].banks:
                self.caches[bank.layer][pages] = 0
        assert self.committed_bytes <= self._info.kv_cache_bytes, (
            f"{self.committed_bytes} bytes are committed"
        )

    @property
    def committed_bytes(self) -> int:
        """Of all groups."""
        size = self._info.plan.page_size
        return sum(
            int(self.committed[each.name].sum()) * each.page_bytes(size) for each in self._info.plan.groups
        )

    def decommit(self, group: str, slabs: Sequence[int]) -> None:
        for pages in self._slabs(group, slabs):
            self.committed[group][pages] = False

    def copy_out(self, group: str, pages: np.ndarray, buffer: np.ndarray) -> None:
        self.check(group, pages)
        assert buffer.shape == (len(pages), self._groups[group].page_bytes(self._info.plan.page_size))
        buffer[:] = 0
        for layer, columns in self._columns(self._groups[group]):
            buffer[:, columns] = self.caches[layer][pages].view(np.uint8)

    def copy_in(self, group: str, pages: np.ndarray, buffer: np.ndarray) -> None:
        self.check(group, pages)
        for layer, columns in self._columns(self._groups[group]):
            self.caches[layer][pages] = np.ascontiguousarray(buffer[:, columns]).view(np.int64)

    def move(self, group: str, sources: np.ndarray, targets: np.ndarray) -> None:
        self.check(group, sources)
        self.check(group, targets)
        assert not set(sources.tolist()) & set(targets.tolist()), "a page is moved over another that moves"
        for bank in self._groups[group].banks:
            self.caches[bank.layer][targets] = self.caches[bank.layer][sources]

    def check(self, group: str, pages: np.ndarray) -> None:
        """Fail where a page has no memory."""
        bare = pages[~self.committed[group][pages]]
        assert not len(bare), f"page {bare[0]} of {group} has no memory"

    def _slabs(self, group: str, slabs: Sequence[int]) -> list[slice]:
        size = self._info.slab_pages[group]
        return [slice(slab * size, (slab + 1) * size) for slab in slabs]

    def _columns(self, group: HorizonGroup) -> list[tuple[int, slice]]:
        """Where each bank's tokens lie in a row: at the start of its part, by layer."""
        page_size, start, places = self._info.plan.page_size, 0, []
        for bank in group.banks:
            assert bank.bytes_per_token >= 8, "a token's id has 8 bytes"
            places.append((bank.layer, slice(start, start + 8 * page_size)))
            start += bank.bytes_per_token * page_size
        return places
