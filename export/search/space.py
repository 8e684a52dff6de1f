"""What a searched plan may be, in bytes: a target, a layer group's options, and the plan they make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from kvfold.export.search.costs import LARGEST_GROUP, CostTable, is_adjacent, shorter_windows
from kvfold.export.search.search_settings import SearchSettings
from kvfold.plugins.contract.attention_shape import AttentionShape
from kvfold.plugins.contract.fold_plan import ITEMSIZE, FoldPlan, HorizonGroup, KvDtype, LayerPlan


@dataclass(frozen=True)
class ByteTarget:
    """At most so many resident KV bytes per token of a sequence of `length` tokens, whole pages counted."""

    bytes_per_token: float
    length: int

    def holds(self, kv_bytes: float) -> bool:
        """Whether a sequence of `length` tokens may keep so many bytes."""
        return kv_bytes <= self.bytes_per_token * self.length


@dataclass(frozen=True)
class Option:
    """One bank of a plan and what it costs.

    Attributes:
        layers: that read it; the first one owns it.
        num_key_value_heads: stored.
        kv_dtype: of the cache.
        sliding_window: tokens they see; None is all.
        sink_size: first tokens they always see.
        cost: nat; what the search minimises the sum of.
        kl: the part of it that is KL, nat a token.
        kv_bytes: of a sequence of each target's length.
    """

    layers: tuple[int, ...]
    num_key_value_heads: int
    kv_dtype: KvDtype
    sliding_window: int | None
    sink_size: int
    cost: float
    kl: float
    kv_bytes: tuple[int, ...]


@dataclass(frozen=True)
class Solution:
    """A whole plan as the banks it is made of."""

    options: tuple[Option, ...]

    @cached_property
    def cost(self) -> float:
        """Predicted: the sum of what its banks cost alone, nat."""
        return sum(option.cost for option in self.options)

    @cached_property
    def kl(self) -> float:
        """Predicted, nat a token."""
        return sum(option.kl for option in self.options)

    @cached_property
    def kv_bytes(self) -> tuple[int, ...]:
        """Of a sequence of each target's length."""
        return tuple(map(sum, zip(*(option.kv_bytes for option in self.options), strict=True)))


@dataclass(frozen=True)
class PlanSpace:
    """The plans that may be chosen for a model.

    Attributes:
        shape: of the unfolded model.
        table: what changes cost.
        settings: windows and weights.
        wide: storage of a cache that int8 is too coarse for.
        page_size: tokens per KV page.
        lengths: of the sequences whose bytes count.
        share_distant_globals: whether global layers share a bank over other layers.
        forbidden: banks that may not be used.
    """

    shape: AttentionShape
    table: CostTable
    settings: SearchSettings
    wide: KvDtype
    page_size: int
    lengths: tuple[int, ...]
    share_distant_globals: bool = False
    forbidden: frozenset[tuple[int, ...]] = frozenset()

    def options(self, chain: Sequence[int], start: int, globals_: frozenset[int]) -> Iterator[Option]:
        """The banks that a chain of layers can go on with at `start`; globals keep the horizon they have."""
        for size in range(1, min(LARGEST_GROUP, len(chain) - start) + 1):
            layers = tuple(chain[start : start + size])
            is_global = layers[0] in globals_
            if (layers[-1] in globals_) != is_global:
                return
            shares = self._may_share(layers, is_global)
            for window in self._windows(layers, is_global) if size == 1 or shares else ():
                seen = sum(self._windowed(layer, window) for layer in layers)
                if size == 1:
                    yield from self._stored(layers, self.shape.num_key_value_heads, window, seen, 0.0)
                if shares:
                    cost = self.table.banks[layers]
                    loss = cost.loss(self.table.unfolded_nll)
                    yield from self._stored(layers, 1, window, seen + cost.kl, loss)

    def _windows(self, layers: tuple[int, ...], is_global: bool) -> Sequence[int | None]:
        """What layers with one window of their own may see: less than that, or that."""
        own = self.shape.windows[layers[0]]
        if is_global:
            return (own,)
        return [*shorter_windows(self.settings.sliding_windows, own), *([] if own is None else [own])]

    def _windowed(self, layer: int, window: int | None) -> float:
        """KL of a layer that sees so far; nothing where it always did."""
        return 0.0 if window == self.shape.windows[layer] else self.table.windowed[layer, window or 0].kl

    def _may_share(self, layers: tuple[int, ...], is_global: bool) -> bool:
        known = layers in self.table.banks and layers not in self.forbidden
        return known and (is_adjacent(layers) or (is_global and self.share_distant_globals))

    def _stored(
        self, layers: tuple[int, ...], heads: int, window: int | None, kl: float, loss: float
    ) -> Iterator[Option]:
        """A bank in int8, and wider where int8 costs something."""
        sinks = 0 if window == self.shape.windows[layers[0]] else self.settings.sink_size
        int8 = [self.table.int8[layer] for layer in layers]
        hurt = [cost for cost in int8 if cost.kl > self.settings.negligible_int8_kl]
        rounding = sum(cost.kl for cost in hurt)
        more = sum(cost.loss(self.table.unfolded_nll) for cost in hurt)
        storages: list[tuple[KvDtype, float, float]] = [("int8", kl + rounding, loss + more)]
        if hurt:
            storages.append((self.wide, kl, loss))
        for dtype, total, answers in storages:
            weighted = total + self.settings.retrieval_weight * answers
            size = 2 * heads * self.shape.head_dim * ITEMSIZE[dtype]
            kv_bytes = tuple(self._tokens_held(length, window, sinks) * size for length in self.lengths)
            yield Option(layers, heads, dtype, window, sinks, weighted, total, kv_bytes)

    def _tokens_held(self, length: int, window: int | None, sinks: int) -> int:
        group = HorizonGroup(name="", sliding_window=window, sink_size=sinks, banks=())
        return group.pages_held(length, self.page_size) * self.page_size

    def plan(self, solution: Solution) -> FoldPlan:
        """The FoldPlan of a solution."""
        layers: dict[int, LayerPlan] = {}
        for option in solution.options:
            for layer in option.layers:
                layers[layer] = LayerPlan(
                    donor=option.layers[0],
                    num_key_value_heads=option.num_key_value_heads,
                    sliding_window=option.sliding_window,
                    sink_size=option.sink_size,
                    kv_dtype=option.kv_dtype,
                )
        return FoldPlan(
            num_attention_heads=self.shape.num_attention_heads,
            head_dim=self.shape.head_dim,
            page_size=self.page_size,
            layers=tuple(layers[index] for index in range(self.shape.num_hidden_layers)),
        )
