"""One call of the attention op under Triton's interpreter, as a launcher does it, and by the reference.

Triton decides when it is imported, and once for all, whether functions are compiled or interpreted. Other
tests of a session compile the same kernels, so the interpreter lives in a process of its own.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from typing import Any, TypeVar

import numpy as np
import torch

from kvfold.plugins.cuda.attention_spec import (
    ActivationDtype,
    AttentionSpec,
    CacheDtype,
    KernelName,
    variant_of,
)
from kvfold.plugins.cuda.launches import WORKSPACE, Shapes, kernels_for, numbers, workspace_sizes
from kvfold.plugins.paged_attention.inputs import Inputs
from kvfold.plugins.paged_attention.reference import paged_attention
from kvfold.plugins.paged_attention.schema import INPUTS

TORCH_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
ACTIVATIONS = ("query", "key", "value")
Found = TypeVar("Found")
CACHES = ("key_cache", "value_cache")


@dataclass(frozen=True)
class Tiles:
    """Tuning constants, small because the interpreter runs a tile as numpy calls."""

    rows: int = 16
    keys: int = 32
    split_keys: int = 64
    int8_dot: int = 1

    @property
    def constants(self) -> dict[str, int]:
        return {
            "ROWS": self.rows,
            "KEYS": self.keys,
            "SPLIT_KEYS": self.split_keys,
            "INT8_DOT": self.int8_dot,
        }


def run(
    inputs: Inputs,
    activation: ActivationDtype,
    writes: bool = True,
    tiles: Tiles | None = None,
    first_page: int = 0,
) -> list[np.ndarray]:
    """Output, key cache and value cache of the kernels; floats come back as float32, unchanged in value.

    Args:
        inputs: arrays; activations and float caches are rounded to `activation`.
        activation: type of query, key, value, output and float caches.
        writes: False launches the variants of a consumer.
        tiles: tuning constants.
        first_page: added to every page id, in a pool that is so much larger.
    """
    results: list[np.ndarray] = interpret(_run, inputs, activation, writes, tiles or Tiles(), first_page)
    return results


def interpret(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in the interpreter's process."""
    return _interpreter().submit(function, *arguments).result()


def expected(inputs: Inputs, activation: ActivationDtype) -> list[np.ndarray]:
    """The same from the reference: in float32, on the same rounded inputs, and over the same caches."""
    tensors = tensors_of(inputs, activation)
    for name in ACTIVATIONS:
        if name in tensors:
            tensors[name] = tensors[name].float()
    results = paged_attention(*(tensors.get(name) for name in INPUTS), **asdict(inputs.attributes))
    return [as_numpy(result) for result in results]


def tensors_of(inputs: Inputs, activation: ActivationDtype) -> dict[str, torch.Tensor]:
    """Tensors by schema name, in the types that the kernels take."""
    tensors = {name: torch.from_numpy(array.copy()) for name, array in inputs.arrays.items()}
    for name in (*ACTIVATIONS, *CACHES):
        if name in tensors and tensors[name].is_floating_point():
            tensors[name] = tensors[name].to(TORCH_TYPES[activation])
    return tensors


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Floats as float32, which has every value of the smaller ones."""
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def spec_of(inputs: Inputs, activation: ActivationDtype, writes: bool) -> AttentionSpec:
    """The node that `inputs` belong to."""
    arrays = inputs.arrays
    cache_dtype: CacheDtype = "int8" if arrays["key_cache"].dtype == np.int8 else activation
    return AttentionSpec(
        inputs.attributes,
        head_size=arrays["key_cache"].shape[3],
        page_size=arrays["key_cache"].shape[1],
        activation_dtype=activation,
        cache_dtype=cache_dtype,
        writes=writes,
        qk_norm="q_norm_weight" in arrays,
        head_sink="head_sink" in arrays,
    )


def shapes_of(inputs: Inputs) -> Shapes:
    """Sizes of the call."""
    arrays = inputs.arrays
    return Shapes(len(arrays["query"]), *arrays["block_table"].shape)


def in_interpreter(function: Callable[..., Found], *arguments: object) -> Found:
    """What a function of a test module returns where Triton interprets."""
    return _interpreter().submit(function, *arguments).result()


@cache
def _interpreter() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_start_interpreter)


def _start_interpreter() -> None:
    """In the new process, before Triton is imported."""
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    _teach_bfloat16()


def _run(
    inputs: Inputs, activation: ActivationDtype, writes: bool, tiles: Tiles, first_page: int
) -> list[np.ndarray]:
    """In the interpreter's process: one call of the op."""
    spec, shapes = spec_of(inputs, activation, writes), shapes_of(inputs)
    buffers = _buffers(inputs, spec, shapes, tiles)
    guards = _move_pages(buffers, spec, first_page)
    packed = "key" not in inputs.arrays
    launch_constants = {"tokens_per_tile": tiles.rows // spec.group_size, "split_keys": tiles.split_keys}
    values = {**buffers, **numbers(spec, shapes, packed, launch_constants)}
    for name in kernels_for(shapes):
        constants = tiles.constants | dict(variant_of(name, spec).constants)
        _launch(name, {**values, **constants})
    assert not any(guard.any() for guard in guards), "a kernel wrote before the first page of a pool"
    return [as_numpy(buffers["output"]), *(as_numpy(buffers[name][first_page:]) for name in CACHES)]


def _buffers(inputs: Inputs, spec: AttentionSpec, shapes: Shapes, tiles: Tiles) -> dict[str, Any]:
    """Every buffer by name: inputs, output and workspace. What is absent is a null pointer."""
    activation = TORCH_TYPES[spec.activation_dtype]
    tensors = tensors_of(inputs, spec.activation_dtype)
    if "key" not in tensors:
        width = spec.head_size * spec.attributes.num_heads
        tensors["key"] = tensors["query"][:, width:]
        tensors["value"] = tensors["key"][:, spec.head_size * spec.attributes.kv_num_heads :]
    # NaN throughout: nothing may be read before it is written.
    width = spec.attributes.num_heads * spec.head_size
    tensors["output"] = torch.full((shapes.tokens, width), torch.nan, dtype=activation)
    for name, size in workspace_sizes(spec, shapes, tiles.split_keys).items():
        kind = activation if name == WORKSPACE[0] else torch.float32
        tensors[name] = torch.full((size,), 255, dtype=torch.uint8).view(kind)
    return {**{name: torch.empty(0) for name in INPUTS}, **tensors}


def _move_pages(buffers: dict[str, Any], spec: AttentionSpec, first_page: int) -> list[torch.Tensor]:
    """Give every page an id higher by `first_page`; the pages before are not initialised, nor in memory.

    Returns:
        A page of zeros before each pool, where a token without a slot (-1) would be written.
    """
    guards = []
    for name in CACHES:
        pages = buffers[name]
        pool = pages.new_empty(1 + first_page + len(pages), *pages.shape[1:])
        pool[1 + first_page :] = pages
        buffers[name] = pool[1:]
        guards.append(pool[0].zero_())
    move_ids(buffers, spec.page_size, first_page)
    return guards


def move_ids(buffers: dict[str, Any], page_size: int, first_page: int) -> None:
    """Make every page id, and the slots of its tokens, higher by `first_page` pages."""
    for name, unit in (("block_table", 1), ("slot_mapping", page_size)):
        ids = buffers[name]
        buffers[name] = torch.where(ids >= 0, ids + first_page * unit, ids)


def _launch(name: KernelName, values: dict[str, Any]) -> None:
    module = importlib.import_module(f"kvfold.plugins.cuda.kernels.{name}")
    kernel = getattr(module, name)
    grid = tuple(values[axis] for axis in module.GRID)
    kernel[grid](**{parameter: values[parameter] for parameter in kernel.arg_names})


def _teach_bfloat16() -> None:
    """Make the interpreter treat bfloat16 as a GPU does.

    It holds bfloat16 as its bits, truncates to it where a GPU rounds, and multiplies the bits in `tl.dot`.
    """
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    builder: Any = InterpreterBuilder
    plain_cast, plain_dot = builder.cast_impl, builder.create_dot

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = handle.data.astype(np.uint32) << 16
        return TensorHandle(bits.view(np.float32), tl.float32)

    def cast(self: Any, source: Any, target: Any) -> Any:
        source = widened(source)
        if target.scalar != tl.bfloat16:
            return plain_cast(self, source, target)
        rounded = torch.from_numpy(source.data.astype(np.float32)).bfloat16()
        return TensorHandle(rounded.view(torch.uint16).numpy(), tl.bfloat16)

    def dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return plain_dot(self, widened(a), widened(b), *others)

    builder.cast_impl, builder.create_dot = cast, dot
