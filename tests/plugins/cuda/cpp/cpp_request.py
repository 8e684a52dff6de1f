"""One call of the op as the text that `cpp_request.h` reads, and Python's answer to it."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.cuda.attention_spec import AttentionSpec, variants_of
from kvfold.plugins.cuda.calls import Launch, resolve, workspace_bytes, workspace_of
from kvfold.plugins.cuda.kernel_library import KernelLibrary
from kvfold.plugins.cuda.launches import Shapes
from kvfold.plugins.paged_attention.schema import INPUTS, Attributes
from kvfold.plugins.tensorrt.attributes import Node, read_node
from kvfold.plugins.tensorrt.node_form import SLOTS

_SETTINGS = ("architecture", "workspace", "stream", "kernels")


@dataclass(frozen=True)
class Tensor:
    """Type and dimensions of one input; a dimension that is not known yet is -1."""

    dtype: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """See `cpp_request.h`."""

    values: Mapping[str, Any]
    tensors: Sequence[Tensor]
    addresses: Sequence[int]
    architecture: int
    workspace: int = 1 << 40
    stream: int = 77
    kernels: str = ""

    def __str__(self) -> str:
        lines = [f"value {name} {type(value).__name__} {value}" for name, value in self.values.items()]
        lines += [f"tensor {each.dtype} {','.join(map(str, each.dims))}" for each in self.tensors]
        lines += [f"address {address}" for address in self.addresses]
        lines += [f"{name} {getattr(self, name)}" for name in _SETTINGS]
        return "\n".join(lines)


def tensors_of(
    attributes: Attributes, inputs: tuple[str, ...], sizes: tuple[int, ...], types: tuple[str, str]
) -> list[Tensor]:
    """Inputs of the contract's types and shapes; `sizes` are tokens, sequences, table width, page, head."""
    tokens, sequences, width, page, head = sizes
    heads, kv_heads = attributes.num_heads, attributes.kv_num_heads
    packed = SLOTS in inputs and "key" not in inputs
    query = (heads + 2 * kv_heads * packed) * head
    dims: dict[str, tuple[int, ...]] = {
        "query": (tokens, query),
        **dict.fromkeys(("key", "value"), (tokens, kv_heads * head)),
        **dict.fromkeys(("key_cache", "value_cache"), (50, page, kv_heads, head)),
        "cumulative_sequence_length": (sequences + 1,),
        "past_seqlens": (sequences,),
        "block_table": (sequences, width),
        **dict.fromkeys(("cos_cache", "sin_cache"), (2048, head // 2)),
        "slot_mapping": (tokens,),
        "head_sink": (heads,),
        **dict.fromkeys(("q_norm_weight", "k_norm_weight"), (head,)),
        **dict.fromkeys(("k_scale", "v_scale"), (kv_heads, 1, head)),
    }
    dtypes = dict.fromkeys(INPUTS, "float32") | dict.fromkeys(("query", "key", "value"), types[0])
    dtypes |= dict.fromkeys(("key_cache", "value_cache"), types[1])
    tables = ("cumulative_sequence_length", "past_seqlens", "block_table", "slot_mapping")
    dtypes |= dict.fromkeys(tables, "int32")
    return [Tensor(dtypes[name], dims[name]) for name in inputs]


def spec_of(node: Node, tensors: Sequence[Tensor]) -> AttentionSpec:
    """What kernels a node needs whose inputs are the contract's."""
    by_name = dict(zip(node.inputs, tensors, strict=True))
    cache = by_name["key_cache"]
    return AttentionSpec(
        attributes=node.attributes,
        head_size=cache.dims[3],
        page_size=cache.dims[1],
        activation_dtype=by_name["query"].dtype,  # type: ignore[arg-type]  # one of the literals
        cache_dtype=cache.dtype,  # type: ignore[arg-type]
        writes=node.writes,
        qk_norm="q_norm_weight" in by_name,
        head_sink="head_sink" in by_name,
    )


def shapes_of(node: Node, tensors: Sequence[Tensor]) -> Shapes:
    """Sizes of a call."""
    dims = {name: tensor.dims for name, tensor in zip(node.inputs, tensors, strict=True)}
    return Shapes(dims["query"][0], dims["past_seqlens"][0], dims["block_table"][1])


def launches_of(request: Request, library: KernelLibrary) -> list[Launch]:
    """What Python launches.

    Raises:
        KernelError: the request breaks the contract, or there is no kernel.
    """
    node = read_node("layers.3", request.values)
    spec, shapes = spec_of(node, request.tensors), shapes_of(node, request.tensors)
    buffers = dict(zip((*node.inputs, *node.outputs), request.addresses, strict=False))
    return resolve(library, request.architecture, spec, shapes, buffers, request.workspace)


def python_answer(request: Request, library: KernelLibrary) -> str:
    """The text that `cpp_answers.cc` makes of the same request."""
    lines: list[str] = []
    try:
        for line in _answer(request, library):
            lines.append(line)
    except KernelError as error:
        lines.append(f"error: {error}")
    return "\n".join(lines) + "\n"


def _answer(request: Request, library: KernelLibrary) -> Iterator[str]:
    node = read_node("layers.3", request.values)
    yield f"node of {', '.join(node.inputs)}"
    spec, shapes = spec_of(node, request.tensors), shapes_of(node, request.tensors)
    yield from (variant.name for variant in variants_of(spec))
    for launch in launches_of(request, library):
        grid = ", ".join(map(str, launch.grid))
        yield f"{launch.kernel.variant} for {launch.kernel.architecture} grid {grid}"
        yield "".join(f"{kind}:{_bits(kind, value)} " for kind, value in launch.arguments)
    yield str(workspace_of(library, request.architecture, spec, shapes))
    yield str(workspace_bytes(library, library.architectures, spec, shapes))


def _bits(kind: str, value: float) -> int:
    """A float as the bits that the kernel gets."""
    if kind != "float32":
        return int(value)
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    return int(bits)
