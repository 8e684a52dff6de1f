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
        """Nothing is committed; the lowest slabs are handed out first."""
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

    def commit(self) -> int:
        """Note that a slab now has memory; returns which."""
        slab = heapq.heappop(self._bare)
        first = slab * self.slab_pages
        self._empty[slab] = list(range(first + self.slab_pages - 1, first - 1, -1))
        self.committed += 1
        self.free += self.slab_pages
        return slab

    def decommit(self) -> int:
        """Note that an empty slab loses its memory; returns which."""
        slab, _ = self._empty.popitem()
        heapq.heappush(self._bare, slab)
        self.committed -= 1
        self.free -= self.slab_pages
        return slab

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

    def clear_sparsest(self) -> tuple[int, list[int]]:
        """Take out the partly used slab with the fewest pages in use, to be emptied.

        Returns:
            The slab and its pages in use. `finish_clearing` makes it empty; its free pages cannot be taken
            until then.
        """
        slab = max(self._partial, key=lambda each: len(self._partial[each]))
        free = self._partial.pop(slab)
        self.free -= len(free)
        first = slab * self.slab_pages
        return slab, sorted(set(range(first, first + self.slab_pages)) - set(free))

    def finish_clearing(self, slab: int) -> None:
        """Its pages are in use elsewhere: the slab is empty."""
        first = slab * self.slab_pages
        self._empty[slab] = list(range(first + self.slab_pages - 1, first - 1, -1))
        self.free += self.slab_pages

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
