"""PagePool: the fixed pages of one horizon group, counted by reference."""

from __future__ import annotations

from collections.abc import Iterable


class PagePool:
    """Pages 0 .. num_pages - 1 of one group.

    Each sequence that maps a page owns one reference, and the radix tree owns at most one.
    Laws: free + used == total; a page is free exactly when nobody holds it; it is idle exactly when
    only the tree holds it, and then it can be evicted.
    """

    def __init__(self, num_pages: int) -> None:
        """All pages start free; the lowest ids are handed out first."""
        self.num_pages = num_pages
        self.num_idle = 0
        self._free = list(range(num_pages - 1, -1, -1))
        self._references = [0] * num_pages
        self._cached = [False] * num_pages

    @property
    def num_free(self) -> int:
        """Pages nobody holds."""
        return len(self._free)

    def references(self, page: int) -> int:
        """How many hold the page."""
        return self._references[page]

    def is_idle(self, page: int) -> bool:
        """Whether only the radix tree holds the page."""
        return self._cached[page] and self._references[page] == 1

    def allocate(self, count: int) -> list[int]:
        """Take `count` free pages, one reference each; the caller has checked `num_free`."""
        assert 0 < count <= len(self._free), f"{count} pages asked of {len(self._free)} free"
        pages = self._free[-count:][::-1]
        del self._free[-count:]
        for page in pages:
            self._references[page] = 1
        return pages

    def retain(self, page: int) -> None:
        """Add a sequence to the holders of a used page."""
        assert self._references[page] > 0, f"page {page} is free and cannot be shared"
        self.num_idle -= self.is_idle(page)
        self._references[page] += 1

    def release(self, page: int) -> None:
        """Take a sequence from the holders; the last holder frees the page."""
        self._drop(page)
        self.num_idle += self.is_idle(page)

    def cache(self, page: int) -> None:
        """Add the radix tree to the holders; a sequence holds the page now."""
        assert self._references[page] > 0 and not self._cached[page], f"page {page} cannot be cached"
        self._cached[page] = True
        self._references[page] += 1

    def uncache(self, page: int) -> bool:
        """Take the radix tree from the holders; True when that freed the page."""
        assert self._cached[page], f"page {page} is not cached"
        self.num_idle -= self.is_idle(page)
        self._cached[page] = False
        self._drop(page)
        return self._references[page] == 0

    def _drop(self, page: int) -> None:
        assert self._references[page] > 0, f"page {page} was released twice"
        self._references[page] -= 1
        if self._references[page] == 0:
            self._free.append(page)

    def check_integrity(self, cached: Iterable[int], mapped: Iterable[int]) -> None:
        """Check conservation against all references that exist.

        Args:
            cached: every page that the tree holds.
            mapped: every page that a sequence maps, once for each sequence.
        """
        counted = [0] * self.num_pages
        in_tree = [False] * self.num_pages
        for page in cached:
            assert not in_tree[page], f"page {page} is in the tree twice"
            in_tree[page] = True
            counted[page] += 1
        for page in mapped:
            counted[page] += 1
        assert counted == self._references, "reference counts differ from the holders"
        assert in_tree == self._cached, "the tree holds other pages than it cached"
        assert self.num_idle == sum(map(self.is_idle, range(self.num_pages)))
        free = set(self._free)
        assert len(free) == len(self._free), "a page is free twice"
        assert free == {page for page, count in enumerate(counted) if count == 0}, "free + used != total"
