"""GroupPages: the pages of one horizon group, whose memory comes and goes a slab at a time."""

from __future__ import annotations

import heapq


class GroupPages:
    """Pages 0 .. num_pages - 1 of one group; slab s is the pages [s * slab_pages, (s + 1) * slab_pages).

    A slab is committed (it has memory) or not. Laws: a page that is in use or free lies in a committed slab;
    a slab is empty where all its pages are free, and then its memory can be given to another group.

    Attributes:
        slab_pages: pages of a slab.
        committed: slabs that have memory.
        free: pages in them that nobody holds.
    """

    def __init__(self, num_pages: int, slab_pages: int) -> None:
        """Nothing is committed; the lowest slabs get memory first."""
        assert num_pages % slab_pages == 0, f"{num_pages} pages are no whole slabs of {slab_pages}"
        self.slab_pages = slab_pages
        self.committed = 0
        self.free = 0
        self._bare = list(range(num_pages // slab_pages))
        self._empty: dict[int, list[int]] = {}
        self._partial: dict[int, list[int]] = {}

    @property
    def empty(self) -> int:
        """Committed slabs without a page in use."""
        return len(self._empty)

    def commit(self, count: int) -> list[int]:
        """Note that so many slabs now have memory; returns which."""
        slabs = [heapq.heappop(self._bare) for _ in range(count)]
        for slab in slabs:
            self._empty[slab] = self._pages_of(slab)
        self.committed += count
        self.free += count * self.slab_pages
        return slabs

    def decommit(self, count: int) -> list[int]:
        """Note that so many empty slabs lose their memory; returns which."""
        slabs = [self._empty.popitem()[0] for _ in range(count)]
        for slab in slabs:
            heapq.heappush(self._bare, slab)
        self.committed -= count
        self.free -= count * self.slab_pages
        return slabs

    def take(self, count: int) -> list[int]:
        """Take free pages, out of slabs that are in use first; the caller has checked `free`."""
        assert count <= self.free, f"{count} pages asked of {self.free} free"
        self.free -= count
        taken: list[int] = []
        while count:
            slab, pages = self._partial.popitem() if self._partial else self._empty.popitem()
            if len(pages) > count:
                taken += pages[: -count - 1 : -1]
                del pages[-count:]
                self._partial[slab] = pages
                return taken
            taken += reversed(pages)
            count -= len(pages)
        return taken

    def give(self, pages: list[int]) -> None:
        """Give back pages that nobody holds any more."""
        self.free += len(pages)
        for page in pages:
            slab = page // self.slab_pages
            free = self._partial.setdefault(slab, [])
            free.append(page)
            if len(free) == self.slab_pages:
                self._empty[slab] = self._partial.pop(slab)

    def clear(self, count: int) -> tuple[list[int], list[int]]:
        """Empty the partly used slabs with the fewest pages in use; the others must have as many free pages.

        Returns:
            The pages in use there, growing, and those that take their place.
        """
        sparsest = heapq.nlargest(count, self._partial, key=lambda slab: len(self._partial[slab]))
        sources: list[int] = []
        for slab in sparsest:
            free = self._partial.pop(slab)
            self.free -= len(free)
            sources += set(self._pages_of(slab)) - set(free)
        targets = self.take(len(sources))
        for slab in sparsest:
            self._empty[slab] = self._pages_of(slab)
        self.free += count * self.slab_pages
        return sorted(sources), targets

    def _pages_of(self, slab: int) -> list[int]:
        """Of a slab, the lowest last."""
        first = slab * self.slab_pages
        return list(range(first + self.slab_pages - 1, first - 1, -1))

    def check_integrity(self, used: set[int]) -> None:
        """Check against the pages that somebody holds."""
        listed = [page for pages in (*self._empty.values(), *self._partial.values()) for page in pages]
        free = set(listed)
        assert len(free) == len(listed) == self.free, "a page is free twice"
        assert not free & used, "a page is free and in use"
        committed = {page // self.slab_pages for page in free | used}
        assert len(committed) == self.committed and not committed & set(self._bare)
        assert len(free) + len(used) == self.committed * self.slab_pages, "free + used != committed"
        assert all(len(pages) == self.slab_pages for pages in self._empty.values())
        assert all(0 < len(pages) < self.slab_pages for pages in self._partial.values())
