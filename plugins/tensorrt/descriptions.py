"""What types and shapes of a node's tensors say: the `AttentionSpec`, or a clear error.

Pure: TensorRT's own descriptions are turned into `Tensor` first, so all of it is tested without TensorRT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from kvfold.plugins.cuda.attention_spec import (
    ACTIVATION_DTYPES,
    HEAD_SIZES,
    PAGE_SIZES,
    ActivationDtype,
    AttentionSpec,
    CacheDtype,
)
from kvfold.plugins.cuda.launches import Shapes
from kvfold.plugins.tensorrt.attributes import Node

# TensorRT's names of types in the words of the rest of kvfold.
DTYPES = {"HALF": "float16", "BF16": "bfloat16", "FLOAT": "float32", "INT8": "int8", "INT32": "int32"}
_ACTIVATIONS = ("query", "key", "value", "output")
_CACHES = ("key_cache", "value_cache", "key_cache_out", "value_cache_out")
_INT32 = ("cumulative_sequence_length", "past_seqlens", "block_table", "slot_mapping")
UNKNOWN = -1


@dataclass(frozen=True)
class Tensor:
    """Type and dimensions of one input; a dimension that is not known yet is UNKNOWN."""

    dtype: str
    dims: tuple[int, ...]


def expected_dtype(node: Node, name: str, activation: str) -> str:
    """Type that the input or output `name` must have where activations are of type `activation`."""
    if name in _ACTIVATIONS:
        return activation
    if name in _CACHES:
        return "int8" if node.attributes.k_quant_type == "PER_CHANNEL" else activation
    return "int32" if name in _INT32 else "float32"


def check_dtypes(node: Node, dtypes: Sequence[str]) -> None:
    """See that the node has the inputs it lists, each of its type.

    Raises:
        KernelError: it has not; the message names the input.
    """
    if len(dtypes) != len(node.inputs):
        listed = ", ".join(node.inputs)
        raise node.error(f"has {len(dtypes)} inputs, and its attribute inputs lists {listed}")
    activation = dtypes[node.inputs.index("query")]
    if activation not in ACTIVATION_DTYPES:
        raise node.error(f"query is {activation}; the kernels compute {' and '.join(ACTIVATION_DTYPES)}")
    for name, dtype in zip(node.inputs, dtypes, strict=True):
        expected = expected_dtype(node, name, activation)
        if dtype != expected:
            because = f" (k_quant_type is {node.attributes.k_quant_type})" if name in _CACHES else ""
            raise node.error(f"{name} is {dtype}, and must be {expected}{because}")


def check_shapes(node: Node, shapes: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    """See that the node's inputs have shapes that agree and that have kernels.

    Args:
        node: which has these inputs.
        shapes: of its inputs, in order.

    Returns:
        Page size and head size.

    Raises:
        KernelError: the message names the input or size.
    """
    by_name = dict(zip(node.inputs, shapes, strict=True))
    cache = by_name["key_cache"]
    if len(cache) != 4 or UNKNOWN in cache[1:]:
        raise node.error(
            f"key_cache has shape {_text(cache)}; it must be [pages, page_size, kv_num_heads, head_size], "
            "with everything but the pages constant"
        )
    _, page_size, _, head_size = cache
    if head_size not in HEAD_SIZES:
        raise node.error(f"head size {head_size} has no kernel; there are {_list(HEAD_SIZES)}")
    if page_size not in PAGE_SIZES:
        problem = "is not a power of two" if page_size & (page_size - 1) else "has no kernel"
        raise node.error(f"page size {page_size} {problem}; there are {_list(PAGE_SIZES)}")
    expected = _expected_shapes(node, by_name, page_size, head_size)
    for name, shape in by_name.items():
        if not _fits(shape, expected[name]):
            raise node.error(f"{name} has shape {_text(shape)}, and must have {_text(expected[name])}")
    return page_size, head_size


def spec_of(node: Node, tensors: Sequence[Tensor]) -> AttentionSpec:
    """What kernels the node needs.

    Raises:
        KernelError: a type or shape is not the contract's, or has no kernel.
    """
    check_dtypes(node, [tensor.dtype for tensor in tensors])
    page_size, head_size = check_shapes(node, [tensor.dims for tensor in tensors])
    dtypes = {name: tensor.dtype for name, tensor in zip(node.inputs, tensors, strict=True)}
    return AttentionSpec(
        attributes=node.attributes,
        head_size=head_size,
        page_size=page_size,
        activation_dtype=cast(ActivationDtype, dtypes["query"]),
        cache_dtype=cast(CacheDtype, dtypes["key_cache"]),
        writes=node.writes,
        qk_norm="q_norm_weight" in dtypes,
        head_sink="head_sink" in dtypes,
    )


def shapes_of(node: Node, tensors: Sequence[Tensor]) -> Shapes:
    """Sizes of a call whose dimensions are all known."""
    dims = {name: tensor.dims for name, tensor in zip(node.inputs, tensors, strict=True)}
    return Shapes(
        tokens=dims["query"][0], sequences=dims["past_seqlens"][0], table_width=dims["block_table"][1]
    )


def _expected_shapes(
    node: Node, shapes: Mapping[str, tuple[int, ...]], page_size: int, head_size: int
) -> dict[str, tuple[int, ...]]:
    """The schema's shapes; a length is that of the input which defines it."""

    def length(name: str) -> int:
        return shapes[name][0] if shapes.get(name) else UNKNOWN

    heads, kv_heads = node.attributes.num_heads, node.attributes.kv_num_heads
    tokens, sequences = length("query"), length("past_seqlens")
    cache = (length("key_cache"), page_size, kv_heads, head_size)
    rope = (length("cos_cache"), head_size // 2)
    query_heads = heads + 2 * kv_heads if node.packed else heads
    return {
        "query": (tokens, query_heads * head_size),
        "key": (tokens, kv_heads * head_size),
        "value": (tokens, kv_heads * head_size),
        "key_cache": cache,
        "value_cache": cache,
        "cumulative_sequence_length": (UNKNOWN if sequences == UNKNOWN else sequences + 1,),
        "past_seqlens": (sequences,),
        "block_table": (sequences, UNKNOWN),
        "cos_cache": rope,
        "sin_cache": rope,
        "slot_mapping": (tokens,),
        "head_sink": (heads,),
        "q_norm_weight": (head_size,),
        "k_norm_weight": (head_size,),
        "k_scale": (kv_heads, 1, head_size),
        "v_scale": (kv_heads, 1, head_size),
    }


def _fits(shape: Sequence[int], expected: Sequence[int]) -> bool:
    return len(shape) == len(expected) and all(
        UNKNOWN in (actual, size) or actual == size for actual, size in zip(shape, expected, strict=True)
    )


def _text(shape: Sequence[int]) -> str:
    return "[" + ", ".join("?" if size == UNKNOWN else str(size) for size in shape) + "]"


def _list(sizes: Sequence[int]) -> str:
    return ", ".join(str(size) for size in sizes)
