"""PagedAttention as every backend implements it.

The contract is ONNX Runtime's `com.microsoft::PagedAttention` (opset 1), with one addition in the
`kvfold` domain: `sink_size`, the first tokens of a sequence that stay visible under a window.

Order inside the op: split packed QKV, QK-norm, RoPE, quantise, write, attend. Attention reads the
cache only, so a token's result never depends on how its sequence was cut into steps. A query that
sees no key (all its pages unmapped) gives zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

from kvfold.plugins.contract.errors import KernelError

OP_TYPE = "PagedAttention"
DOMAIN = "kvfold"
OPSET = 1

# Positional inputs. T new tokens of B sequences; "?" may be absent (empty name).
INPUTS = (
    "query",  # float [T, num_heads * head_size], or packed [T, (num_heads + 2 * kv_num_heads) * head_size]
    "key",  # ? float [T, kv_num_heads * head_size]; absent: query is packed QKV
    "value",  # ? the same
    "key_cache",  # float or int8 [num_pages, page_size, kv_num_heads, head_size]
    "value_cache",  # the same
    "cumulative_sequence_length",  # int32 [B + 1]
    "past_seqlens",  # int32 [B]
    "block_table",  # int32 [B, M]; -1: not mapped, masked out, never read
    "cos_cache",  # ? float [max_position, head_size / 2]
    "sin_cache",  # ? the same
    "slot_mapping",  # int32 [T]: page * page_size + offset; -1: do not write (optional in the published op)
    "head_sink",  # ? float [num_heads]: learned logit added to each softmax's denominator
    "q_norm_weight",  # ? float [head_size]; both norm weights or neither
    "k_norm_weight",  # ? the same
    "k_scale",  # ? float32 (kv_num_heads, 1, head_size); required by int8 caches
    "v_scale",  # ? the same
)
OUTPUTS = (
    "output",  # float [T, num_heads * head_size]
    "key_cache_out",  # ? aliases key_cache; absent on a layer that writes nothing
    "value_cache_out",  # ? aliases value_cache
)
OPTIONAL_INPUTS = frozenset(
    (
        "key",
        "value",
        "cos_cache",
        "sin_cache",
        "head_sink",
        "q_norm_weight",
        "k_norm_weight",
        "k_scale",
        "v_scale",
    )
)
QuantType = Literal["NONE", "PER_TENSOR", "PER_CHANNEL"]


@dataclass(frozen=True)
class Attributes:
    """Attributes of one node.

    Raises:
        KernelError: the scale is not a positive number.

    Attributes:
        num_heads: query heads.
        kv_num_heads: KV heads; query head h reads KV head h // (num_heads / kv_num_heads).
        scale: factor on q.k before the softmax, above 0: kernels may take a row's maximum before it.
        softcap: 0 is off; else logits become softcap * tanh(logits / softcap).
        local_window_size: -1 is off; else tokens visible to a query, itself included.
        sink_size: first tokens of the sequence visible in spite of the window.
        do_rotary: 1 applies RoPE to q and k at position past_seqlens + row.
        rotary_interleaved: 0 pairs channel i with i + head_size / 2 (Hugging Face layout); the
            only layout kvfold writes.
        qk_norm_epsilon: epsilon of the RMS QK-norm, where its weights are given.
        k_quant_type, v_quant_type: NONE for float caches, PER_CHANNEL for int8 caches.
    """

    num_heads: int
    kv_num_heads: int
    scale: float
    softcap: float = 0.0
    local_window_size: int = -1
    sink_size: int = 0
    do_rotary: int = 1
    rotary_interleaved: int = 0
    qk_norm_epsilon: float = 1e-6
    k_quant_type: QuantType = "NONE"
    v_quant_type: QuantType = "NONE"

    def __post_init__(self) -> None:
        """Refuse a scale that no kernel is made for."""
        if not 0 < self.scale < inf:
            raise KernelError(f"scale is {self.scale}, and must be a positive number")
