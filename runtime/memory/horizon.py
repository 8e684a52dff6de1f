"""Page arithmetic of one horizon group: which pages a length needs, and how many at most.

Laws, for pages of P tokens, a window of w tokens (the current one counted) and s sinks:
    a query at position p sees j <= p with p - j < w or j < s;
    so a hit at length k * P needs the sink pages [0, ceil(s / P)) and the tail [k - ceil((w - 1) / P), k).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvfold.plugins.contract.fold_plan import FoldPlan


@dataclass(frozen=True)
class Horizon:
    """The page law of one group.

    Attributes:
        index: place of the group in `plan.groups`; tables and pools are ordered so.
        name: the group's name.
        page_size: tokens a page.
        sink_pages: leading pages that are never freed while the sequence lives.
        tail_pages: pages before a page-aligned length that its next token sees; None is global.
    """

    index: int
    name: str
    page_size: int
    sink_pages: int
    tail_pages: int | None

    @property
    def is_local(self) -> bool:
        """Whether pages leave the window."""
        return self.tail_pages is not None

    def first_kept(self, full_pages: int) -> int:
        """First page, sinks aside, that a sequence with `full_pages` full pages keeps.

        Enough for its next token and for a hit that ends at its last full page.
        Example: window 32, pages of 16: 2 tail pages; at 5 full pages (and any part of a sixth) 3.
        """
        return 0 if self.tail_pages is None else max(0, full_pages - self.tail_pages)

    def spans(self, pages: int) -> tuple[slice, slice]:
        """The pages that a hit of `pages` pages needs: those of the sinks before the tail, and the tail."""
        first = self.first_kept(pages)
        return slice(0, min(self.sink_pages, first)), slice(first, pages)

    def needed(self, pages: int) -> list[int]:
        """These pages, growing."""
        return [page for span in self.spans(pages) for page in range(span.start, span.stop)]

    def peak_pages(self, length: int, chunk: int) -> int:
        """Most pages that a sequence of up to `length` tokens maps at once, at `chunk` tokens a step."""
        pages = ceil(length / self.page_size)
        if self.tail_pages is None:
            return pages
        chunk_pages = (self.page_size + chunk - 2) // self.page_size + 1
        return min(pages, self.sink_pages + self.tail_pages + chunk_pages)


def horizons(plan: FoldPlan) -> tuple[Horizon, ...]:
    """The page laws of a plan's groups, in the plan's order."""
    size = plan.page_size
    return tuple(
        Horizon(
            index=index,
            name=group.name,
            page_size=size,
            sink_pages=ceil(group.sink_size / size),
            tail_pages=None if group.sliding_window is None else ceil((group.sliding_window - 1) / size),
        )
        for index, group in enumerate(plan.groups)
    )
