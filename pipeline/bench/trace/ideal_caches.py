"""Ideal caches: what an LRU that spends every byte well would have of the same turns."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvfold.pipeline.bench.trace.trace_turns import Turn
from kvfold.plugins.contract.attention_shape import AttentionShape
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.memory.horizon import horizons


@dataclass(frozen=True)
class PagePath:
    """A turn as pages.

    Attributes:
        pages: a name for each full page of prompt and reply, that of its whole prefix too.
        prompt_length: tokens.
        hit_limit: most pages that a hit may have; a token at least is computed.
    """

    pages: Sequence[int]
    prompt_length: int
    hit_limit: int


def path_of(turn: Turn, page_size: int) -> PagePath:
    """A turn's pages of so many tokens."""
    tokens = turn.tokens
    full = len(tokens) // page_size
    names, name = [], 0
    for page in tokens[: full * page_size].reshape(full, page_size):
        name = hash((name, page.tobytes()))
        names.append(name)
    return PagePath(names, turn.prompt_length, (turn.prompt_length - 1) // page_size)


@dataclass(frozen=True)
class FoldedCosts:
    """Bytes of a folded cache.

    Attributes:
        page: of the global groups.
        tail: of an end: the windows' tails and sinks in the local groups.
    """

    page: int
    tail: int

    @classmethod
    def of(cls, plan: FoldPlan) -> FoldedCosts:
        """Of a plan."""
        page = tail = 0
        for law, group in zip(horizons(plan), plan.groups, strict=True):
            size = group.page_bytes(plan.page_size)
            if law.tail_pages is None:
                page += size
            else:
                tail += (law.sink_pages + law.tail_pages) * size
        return cls(page, tail)


class IdealFolded:
    """An LRU of ends: each keeps its tail, and shares the global pages before it with the others.

    Ends are where a prompt left what was known, where it ended, and where its reply did. The prompt's end
    goes first, as the reply's has superseded it. Running requests take no bytes. The future is not known: a
    memory that keeps other ends may have more.
    """

    def __init__(self, costs: FoldedCosts, budget: int | None) -> None:
        """Empty; a budget of None is endless."""
        self._costs = costs
        self._budget = budget
        self._used = 0
        self._ends: OrderedDict[int, None] = OrderedDict()
        self._parents: dict[int, int] = {}
        self._holders: dict[int, int] = {}  # ends and pages that go on from a page

    def read(self, path: PagePath) -> int:
        """Pages that a turn finds; then the cache knows it."""
        pages, limit = path.pages, path.hit_limit
        hit = next((count for count in range(limit, 0, -1) if pages[count - 1] in self._ends), 0)
        if hit:
            self._ends.move_to_end(pages[hit - 1])
        known = next((count for count, page in enumerate(pages) if page not in self._parents), len(pages))
        for end in sorted({len(pages), limit, min(known, limit)}, reverse=True):
            if end:
                self._keep(pages, end)
        if limit and len(pages) > limit:
            self._ends.move_to_end(pages[limit - 1], last=False)
        while self._budget is not None and self._used > self._budget:
            self._drop(self._ends.popitem(last=False)[0])
        return hit

    def _keep(self, pages: Sequence[int], end: int) -> None:
        page = pages[end - 1]
        if page not in self._ends:
            self._used += self._costs.tail
            self._hold(pages, end)
        self._ends[page] = None
        self._ends.move_to_end(page)

    def _hold(self, pages: Sequence[int], end: int) -> None:
        """One holder more of the page before `end`, which takes in those before it that are new."""
        for index in range(end - 1, -1, -1):
            page = pages[index]
            self._holders[page] = self._holders.get(page, 0) + 1
            if page in self._parents:
                return
            self._parents[page] = pages[index - 1] if index else 0
            self._used += self._costs.page

    def _drop(self, page: int) -> None:
        self._used -= self._costs.tail
        while page:
            self._holders[page] -= 1
            if self._holders[page]:
                return
            del self._holders[page]
            self._used -= self._costs.page
            page = self._parents.pop(page)


class IdealUnfolded:
    """An LRU of pages that hold all of their tokens' keys and values: a hit is a path's first pages."""

    def __init__(self, page_bytes: int, budget: int | None) -> None:
        """Empty; a budget of None is endless."""
        self._most = None if budget is None else budget // page_bytes
        self._pages: OrderedDict[int, None] = OrderedDict()

    def read(self, path: PagePath) -> int:
        """Pages that a turn finds; then the cache knows it."""
        limit = path.hit_limit
        hit = next((count for count in range(limit) if path.pages[count] not in self._pages), limit)
        for page in reversed(path.pages):  # the last page of a path goes first
            self._pages[page] = None
            self._pages.move_to_end(page)
        while self._most is not None and len(self._pages) > self._most:
            self._pages.popitem(last=False)
        return hit


def hit_rate(cache: IdealFolded | IdealUnfolded, paths: Iterable[PagePath], page_size: int) -> float:
    """Share of the prompts' tokens that a cache has, from empty on."""
    hit = total = 0
    for path in paths:
        hit += cache.read(path) * page_size
        total += path.prompt_length
    return hit / total


def unfolded_hit_rate(shape: AttentionShape, budget: int, paths: Sequence[PagePath], page_size: int) -> float:
    """Of the unfolded model's cache in bf16.

    Where it has windows of its own, it may keep whole pages or ends with their tails: whichever has more.
    """
    rate = hit_rate(IdealUnfolded(page_size * shape.kv_bytes(1), budget), paths, page_size)
    if not any(shape.windows):
        return rate
    plan = FoldPlan.of(shape, "bfloat16").model_copy(update={"page_size": page_size})
    return max(rate, hit_rate(IdealFolded(FoldedCosts.of(plan), budget), paths, page_size))
