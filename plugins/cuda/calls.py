"""One call of the op, resolved to what the driver is given: kernels, grids, values of arguments.

Pure, and the reference of `cpp/calls.cc`, which engines run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.cuda.attention_spec import AttentionSpec, variant_of
from kvfold.plugins.cuda.kernel_library import CompiledKernel, KernelLibrary
from kvfold.plugins.cuda.launches import FLOATS, Shapes, kernels_for, numbers, workspace_sizes
from kvfold.plugins.paged_attention.schema import INPUTS

ArgumentKind = Literal["pointer", "int32", "float32"]
_ACTIVATION_BYTES = 2  # float16 and bfloat16


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Attributes:
        kernel: the cubin and its entry point.
        grid: blocks along x, y, z.
        arguments: (kind, value) in the order of the kernel's parameters; a pointer is a device address, 0 for
            an input that the node does not have.
    """

    kernel: CompiledKernel
    grid: tuple[int, int, int]
    arguments: tuple[tuple[ArgumentKind, int | float], ...]


def resolve(
    library: KernelLibrary,
    architecture: int,
    spec: AttentionSpec,
    shapes: Shapes,
    buffers: Mapping[str, int],
    workspace: int,
) -> list[Launch]:
    """The launches of one call, in order.

    Args:
        library: kernels of the engine.
        architecture: of the GPU, 10 * major + minor.
        spec: the node.
        shapes: of the call.
        buffers: device address of every input and output that the node has, by schema name.
        workspace: device address of at least `workspace_of` bytes.

    Raises:
        KernelError: a kernel is not in the library, or asks for something that this version does not know.
    """
    packed = spec.writes and "key" not in buffers
    # Merging has no split size of its own: its splits are those that decoding wrote.
    split_keys = _split_keys(library, spec, architecture) if shapes.decodes else 0
    pointers = dict.fromkeys(INPUTS, 0) | dict(buffers)
    if packed:
        pointers |= _inside_packed(spec, buffers["query"])
    for name, size in workspace_sizes(spec, shapes, split_keys).items():
        pointers[name] = workspace
        workspace += size
    launches = []
    for kernel_name in kernels_for(shapes):
        kernel = library.find(variant_of(kernel_name, spec).name, architecture)
        values = numbers(spec, shapes, packed, kernel.constants | {"split_keys": split_keys})
        x, y, z = (_grid_size(kernel, name, values) for name in kernel.grid)
        arguments = tuple(_argument(kernel, name, pointers, values) for name in kernel.arguments)
        launches.append(Launch(kernel, (x, y, z), arguments))
    return launches


def workspace_of(library: KernelLibrary, architecture: int, spec: AttentionSpec, shapes: Shapes) -> int:
    """Scratch memory of one call on one architecture."""
    split_keys = _split_keys(library, spec, architecture) if shapes.decodes else 0
    return sum(workspace_sizes(spec, shapes, split_keys).values())


def workspace_bytes(
    library: KernelLibrary, architectures: Sequence[int], spec: AttentionSpec, largest: Shapes
) -> int:
    """Scratch memory that suffices for every call up to `largest`, on each of the architectures.

    A profile whose most tokens and sequences differ may still see calls that decode.
    """
    decoded = min(largest.tokens, largest.sequences)
    decoding = Shapes(decoded, decoded, largest.table_width)
    return max(
        workspace_of(library, architecture, spec, shapes)
        for architecture in architectures
        for shapes in (largest, decoding)
    )


def _split_keys(library: KernelLibrary, spec: AttentionSpec, architecture: int) -> int:
    kernel = library.find(variant_of("decode", spec).name, architecture)
    if "split_keys" not in kernel.constants:
        raise KernelError(f"kernel {kernel.variant} does not say its split_keys; {_AGAIN}")
    return kernel.constants["split_keys"]


def _inside_packed(spec: AttentionSpec, query: int) -> dict[str, int]:
    """Addresses of key and value inside packed QKV [T, (num_heads + 2 * kv_num_heads) * head_size]."""
    query_bytes = spec.attributes.num_heads * spec.head_size * _ACTIVATION_BYTES
    kv_bytes = spec.attributes.kv_num_heads * spec.head_size * _ACTIVATION_BYTES
    return {"key": query + query_bytes, "value": query + query_bytes + kv_bytes}


def _grid_size(kernel: CompiledKernel, name: str, values: Mapping[str, int | float]) -> int:
    if name not in values or name in FLOATS:
        raise KernelError(f"kernel {kernel.variant} has a grid over {name!r}, which is unknown; {_AGAIN}")
    return int(values[name])


def _argument(
    kernel: CompiledKernel, name: str, pointers: Mapping[str, int], values: Mapping[str, int | float]
) -> tuple[ArgumentKind, int | float]:
    if name in pointers:
        return "pointer", pointers[name]
    if name not in values:
        raise KernelError(f"kernel {kernel.variant} takes {name!r}, which is unknown; {_AGAIN}")
    return ("float32" if name in FLOATS else "int32"), values[name]


_AGAIN = "build the engine again with this kvfold"
