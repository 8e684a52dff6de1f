"""The FoldPlan: the one specification of a folded model, from which everything else derives.

A plan says for each decoder layer whose KV it reads (`donor`), how many KV heads that is, how far
back it looks (`sliding_window`, which counts the current token), which first tokens it always sees
(`sink_size`) or which learned logit stands for them (`head_sink`), and how the cache is stored
(`kv_dtype`). Banks, horizon groups, bytes and the graph's
inputs are derived from it and never stored.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from math import ceil
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from pydantic import ValidationError as PydanticValidationError

from kvfold.plugins.contract.attention_shape import AttentionShape
from kvfold.plugins.contract.record import Record

KvDtype = Literal["float32", "float16", "bfloat16", "int8"]
ITEMSIZE: dict[KvDtype, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}


class LayerPlan(Record):
    """How one decoder layer attends.

    Attributes:
        donor: index of the layer whose KV this layer reads; its own index makes it a producer.
        num_key_value_heads: KV heads of the cache it reads (1 is multi-query attention).
        sliding_window: tokens visible to a query, the current one included; None is global.
        sink_size: first tokens of the sequence that stay visible under a window.
        head_sink: each query head has a learned logit that joins its softmax's denominator, in place of
            sink tokens. It belongs to the layer that reads, not to the cache.
        kv_dtype: storage of the cache it reads.
        rope_slots: RoPE frequency (0 is the fastest) that each channel pair of its keys turns with,
            head_dim / 2 of them; a fold gives a frequency that matters several pairs, and one that does not
            none. None is each frequency once, in order. Folding fills it in; it costs no bytes.
    """

    donor: int = Field(ge=0)
    num_key_value_heads: int = Field(ge=1)
    sliding_window: int | None = Field(default=None, ge=1)
    sink_size: int = Field(default=0, ge=0)
    head_sink: bool = False
    kv_dtype: KvDtype = "float32"
    rope_slots: tuple[int, ...] | None = None


class Bank(Record):
    """One stored KV tensor pair; it belongs to the producer layer `layer`."""

    layer: int
    group: str
    num_key_value_heads: int
    head_dim: int
    kv_dtype: KvDtype
    consumers: tuple[int, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        """All that read it: the producer, then the consumers."""
        return self.layer, *self.consumers

    @property
    def bytes_per_token(self) -> int:
        """Bytes of K and V for one token (int8 scales are static and not counted per token)."""
        return 2 * self.num_key_value_heads * self.head_dim * ITEMSIZE[self.kv_dtype]


class HorizonGroup(Record):
    """Layers with the same horizon: they share one block table and one page pool."""

    name: str
    sliding_window: int | None
    sink_size: int
    banks: tuple[Bank, ...]

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token takes in all banks of the group."""
        return sum(bank.bytes_per_token for bank in self.banks)

    def page_bytes(self, page_size: int) -> int:
        """Bytes of one page of `page_size` tokens, in all banks of the group."""
        return page_size * self.bytes_per_token

    def pages_held(self, context_length: int, page_size: int) -> int:
        """Pages a sequence of `context_length` tokens keeps between steps.

        Global: every page. Local: at most window + 2 pages, and the pages of the sinks.
        Example: window 1024, 4 sinks, pages of 16: at most 64 + 2 + 1 = 67.
        """
        pages = ceil(context_length / page_size)
        if self.sliding_window is None:
            return pages
        bound = ceil(self.sliding_window / page_size) + 2 + ceil(self.sink_size / page_size)
        return min(pages, bound)


class FoldPlan(Record):
    """The folded attention of a whole model.

    Laws, checked on construction (PlanError through `build_plan`, BundleError where a bundle's is read):
        layer 0 owns its KV; a donor comes before its consumer and is itself a producer; donor and
        consumer agree on KV heads, window, sink tokens, dtype and RoPE slots; KV heads divide the query
        heads; only a windowed layer has sinks, tokens or learned logits, not both; a page is a power of
        two of at least 16 tokens.
    """

    num_attention_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2)
    page_size: int = 16
    layers: tuple[LayerPlan, ...]

    @classmethod
    def of(cls, shape: AttentionShape, kv_dtype: KvDtype = "float32") -> Self:
        """The plan that a checkpoint has as it is: its own windows and heads, nothing shared.

        Raises:
            ValidationError: the shape itself breaks a law (an odd head_dim).
        """
        return cls(
            num_attention_heads=shape.num_attention_heads,
            head_dim=shape.head_dim,
            layers=tuple(
                LayerPlan(
                    donor=index,
                    num_key_value_heads=shape.num_key_value_heads,
                    sliding_window=window,
                    kv_dtype=kv_dtype,
                )
                for index, window in enumerate(shape.windows)
            ),
        )

    @model_validator(mode="after")
    def _check_laws(self) -> Self:
        if not self.layers:
            raise ValueError("layers is empty; a plan has a LayerPlan for each decoder layer")
        if self.page_size < 16 or self.page_size & (self.page_size - 1):
            raise ValueError(f"page_size is {self.page_size}; use a power of two of at least 16")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; RoPE needs an even head_dim")
        for index, layer in enumerate(self.layers):
            self._check_layer(index, layer)
        return self

    def _check_layer(self, index: int, layer: LayerPlan) -> None:
        heads = layer.num_key_value_heads
        if self.num_attention_heads % heads:
            raise ValueError(
                f"layer {index}: {heads} KV heads do not divide {self.num_attention_heads} query heads"
            )
        if layer.sink_size and layer.sliding_window is None:
            raise ValueError(f"layer {index}: sink_size needs a sliding_window; a global layer sees all")
        if layer.head_sink and layer.sliding_window is None:
            raise ValueError(f"layer {index}: head_sink needs a sliding_window; a global layer sees all")
        if layer.head_sink and layer.sink_size:
            raise ValueError(
                f"layer {index}: head_sink takes the place of sink tokens, sink_size is {layer.sink_size}; "
                "set sink_size: 0"
            )
        self._check_rope_slots(index, layer)
        if layer.donor > index:
            raise ValueError(
                f"layer {index}: donor {layer.donor} comes later; a donor must come before its consumer"
            )
        if layer.donor == index:
            return
        donor = self.layers[layer.donor]
        if donor.donor != layer.donor:
            raise ValueError(
                f"layer {index}: donor {layer.donor} owns no KV, it reads layer {donor.donor}; name that one"
            )
        for name in ("num_key_value_heads", "sliding_window", "sink_size", "kv_dtype", "rope_slots"):
            mine, theirs = getattr(layer, name), getattr(donor, name)
            if mine != theirs:
                raise ValueError(
                    f"layer {index}: {name} is {mine}, its donor {layer.donor} has {theirs}; they must agree"
                )

    def _check_rope_slots(self, index: int, layer: LayerPlan) -> None:
        slots, pairs = layer.rope_slots, self.head_dim // 2
        if slots is not None and (len(slots) != pairs or not all(0 <= slot < pairs for slot in slots)):
            raise ValueError(
                f"layer {index}: rope_slots is {slots}; head_dim {self.head_dim} needs {pairs} frequencies, "
                f"each of 0..{pairs - 1}"
            )

    @cached_property
    def banks(self) -> tuple[Bank, ...]:
        """One bank per producer layer, in layer order."""
        return tuple(
            Bank(
                layer=index,
                group=group_name(layer.sliding_window, layer.sink_size),
                num_key_value_heads=layer.num_key_value_heads,
                head_dim=self.head_dim,
                kv_dtype=layer.kv_dtype,
                consumers=tuple(i for i, other in enumerate(self.layers) if other.donor == index != i),
            )
            for index, layer in enumerate(self.layers)
            if layer.donor == index
        )

    @cached_property
    def groups(self) -> tuple[HorizonGroup, ...]:
        """Horizon groups, the global one first, then by growing window."""
        horizons = sorted(
            {(layer.sliding_window, layer.sink_size) for layer in self.layers},
            key=lambda horizon: (horizon[0] is not None, horizon[0] or 0, horizon[1]),
        )
        return tuple(
            HorizonGroup(
                name=group_name(window, sinks),
                sliding_window=window,
                sink_size=sinks,
                banks=tuple(bank for bank in self.banks if bank.group == group_name(window, sinks)),
            )
            for window, sinks in horizons
        )

    def is_producer(self, layer: int) -> bool:
        """Whether the layer stores a KV of its own."""
        return self.layers[layer].donor == layer

    def with_rope_slots(self, producer: int, slots: tuple[int, ...] | None) -> FoldPlan:
        """This plan with other RoPE slots in the bank of layer `producer`."""
        readers = [index for index, layer in enumerate(self.layers) if layer.donor == producer]
        return self.with_layers(readers, rope_slots=slots)

    def with_layers(self, indices: Collection[int], **fields: Any) -> FoldPlan:
        """This plan with other values in these layers; raises ValueError where it then breaks a law."""
        layers = tuple(
            layer.model_copy(update=fields) if index in indices else layer
            for index, layer in enumerate(self.layers)
        )
        return FoldPlan(**(self.model_dump(exclude={"layers"}) | {"layers": layers}))

    def kv_bytes(self, context_length: int) -> int:
        """Resident KV bytes of one sequence of `context_length` tokens, whole pages counted."""
        return sum(
            group.pages_held(context_length, self.page_size) * group.page_bytes(self.page_size)
            for group in self.groups
        )


def group_name(sliding_window: int | None, sink_size: int) -> str:
    """Name of a horizon group as it appears in the graph: `global` or `window1024_sink4`."""
    return "global" if sliding_window is None else f"window{sliding_window}_sink{sink_size}"


def describe_errors(subject: str, error: PydanticValidationError) -> str:
    """One line per problem that pydantic found: where, what, and the value given."""
    lines = [f"{subject} is not valid:"]
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "laws"
        message = item["msg"].removeprefix("Value error, ")
        given = "" if isinstance(item["input"], dict) else f" (given: {item['input']!r:.80})"
        lines.append(f"  {where}: {message}{given}")
    return "\n".join(lines)
