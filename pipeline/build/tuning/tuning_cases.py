"""The calls that ways to compile a kernel are compared on: one for each kernel, type of caches and width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvfold.plugins.cuda.attention_spec import AttentionSpec, CacheDtype, Variant, variant_of
from kvfold.plugins.cuda.launches import Shapes
from kvfold.plugins.paged_attention.schema import Attributes

PAGE_SIZE = 16
# Query heads, KV heads, channels: folded SmolLM2, Llama 3 8B, a Gemma. Groups matter little beside the width.
HEADS = ((9, 1, 64), (32, 8, 128), (8, 4, 256))
CACHES: tuple[CacheDtype, ...] = ("int8", "float16")
# Sequences, tokens in the cache, new tokens of each: a prompt, and a batch whose caches no L2 holds.
LENGTHS: dict[Literal["prefill", "decode"], tuple[int, int, int]] = {
    "prefill": (1, 0, 8192),
    "decode": (64, 8191, 1),
}


@dataclass(frozen=True)
class TuningCase:
    """One call.

    Attributes:
        kernel: that is tuned.
        spec: of the node.
        sequences: of the call.
        past: tokens of each in the cache.
        new: tokens of each that are computed.
    """

    kernel: Literal["prefill", "decode"]
    spec: AttentionSpec
    sequences: int
    past: int
    new: int

    @property
    def name(self) -> str:
        """`prefill int8 9/1x64`: the kernel, its caches, query heads / KV heads x channels."""
        attributes = self.spec.attributes
        heads = f"{attributes.num_heads}/{attributes.kv_num_heads}x{self.spec.head_size}"
        return f"{self.kernel} {self.spec.cache_dtype} {heads}"

    @property
    def variant(self) -> Variant:
        """Of the kernel that is tuned."""
        return variant_of(self.kernel, self.spec)

    @property
    def width(self) -> int:
        """Channels of a head, rounded up to a power of two."""
        return 1 << (self.spec.head_size - 1).bit_length()

    @property
    def shapes(self) -> Shapes:
        """Of the call."""
        pages = -(-(self.past + self.new) // PAGE_SIZE)
        return Shapes(self.sequences * self.new, self.sequences, pages)


def tuning_cases() -> tuple[TuningCase, ...]:
    """Every call, those of the narrowest heads first."""
    return tuple(
        TuningCase(kernel, _spec(*heads, cache), *lengths)
        for heads in HEADS
        for cache in CACHES
        for kernel, lengths in LENGTHS.items()
    )


def _spec(num_heads: int, kv_num_heads: int, head_size: int, cache: CacheDtype) -> AttentionSpec:
    kind: Literal["PER_CHANNEL", "NONE"] = "PER_CHANNEL" if cache == "int8" else "NONE"
    attributes = Attributes(
        num_heads, kv_num_heads, scale=head_size**-0.5, k_quant_type=kind, v_quant_type=kind
    )
    # A consumer: what prepares new tokens is not timed.
    return AttentionSpec(attributes, head_size, PAGE_SIZE, "float16", cache, writes=False)
