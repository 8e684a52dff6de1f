"""What is constant of one attention node, and which kernel variants it needs.

A variant is one kernel with its compile-time constants. Fields that a kernel does not depend on are left
out of its variant, so layers that differ in window, scale or number of heads share one cubin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvfold.plugins.paged_attention.schema import Attributes

ActivationDtype = Literal["float16", "bfloat16"]
CacheDtype = Literal["float16", "bfloat16", "int8"]
KernelName = Literal["append", "prefill", "decode", "merge", "edit", "penalize", "sample", "feed"]

ACTIVATION_DTYPES: tuple[ActivationDtype, ...] = ("float16", "bfloat16")
# Blocks are as wide as the next power of two. A multiple of 8 keeps heads where 16 bytes load at once.
HEAD_SIZES = range(64, 257, 8)
PAGE_SIZES = (16, 32, 64, 128)
# SM75 has no bfloat16; tensor cores with int8 and bfloat16 begin with SM80.
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120, 121)


@dataclass(frozen=True)
class AttentionSpec:
    """One PagedAttention node, without anything that changes from step to step.

    Attributes:
        attributes: of the node.
        head_size: channels of a head.
        page_size: tokens of a page.
        activation_dtype: of query, key, value and output. Everything small (RoPE tables, norm weights, head
            sinks, scales) is float32 on a GPU.
        cache_dtype: int8, or the activation's own type.
        writes: False on a consumer of another layer's cache.
        qk_norm: norm weights are given.
        head_sink: a learned sink logit per query head is given.
    """

    attributes: Attributes
    head_size: int
    page_size: int
    activation_dtype: ActivationDtype
    cache_dtype: CacheDtype
    writes: bool = True
    qk_norm: bool = False
    head_sink: bool = False

    @property
    def group_size(self) -> int:
        """Query heads that read one KV head."""
        return self.attributes.num_heads // self.attributes.kv_num_heads


@dataclass(frozen=True)
class Variant:
    """One kernel with its compile-time constants, by the names of the kernel's constexpr parameters.

    Attributes:
        kernel: which kernel.
        activation_dtype: of what it reads and writes; float32 where that is logits.
        cache_dtype: of the caches it reads or writes; of a kernel that has none, its activations'.
        constants: (name, value) pairs in alphabetical order.
    """

    kernel: KernelName
    activation_dtype: ActivationDtype | Literal["float32"]
    cache_dtype: CacheDtype | Literal["float32"]
    constants: tuple[tuple[str, int], ...]

    @property
    def name(self) -> str:
        """Unique and readable, e.g. `decode-float16-int8-group_size9-head_size64-...`."""
        constants = (f"{name.lower()}{value}" for name, value in self.constants)
        return "-".join((self.kernel, self.activation_dtype, self.cache_dtype, *constants))


def variant_of(kernel: KernelName, spec: AttentionSpec) -> Variant:
    """The variant of one kernel that a node needs."""
    constants = {"HEAD_SIZE": spec.head_size}
    if kernel == "append":
        constants |= {
            "ROTARY": spec.attributes.do_rotary,
            "QK_NORM": int(spec.qk_norm),
            "WRITES": int(spec.writes),
        }
    elif kernel in ("prefill", "decode"):
        constants |= {
            "PAGE_SIZE": spec.page_size,
            "GROUP_SIZE": spec.group_size,
            "SOFTCAP": int(spec.attributes.softcap > 0),
        }
    if kernel in ("prefill", "merge"):  # decoding meets the head sink when its splits are merged
        constants["HEAD_SINK"] = int(spec.head_sink)
    return Variant(kernel, spec.activation_dtype, spec.cache_dtype, tuple(sorted(constants.items())))


def variants_of(spec: AttentionSpec) -> tuple[Variant, ...]:
    """Every variant that a node may launch."""
    kernels: tuple[KernelName, ...] = ("append", "prefill", "decode", "merge")
    return tuple(variant_of(kernel, spec) for kernel in kernels)
