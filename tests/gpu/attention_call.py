"""One call of the op on the GPU: arrays go up, prebuilt kernels run, results come down. No torch on the GPU.

Inputs, their types and the reference's answer are those of the interpreter's tests.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kvfold.plugins.cuda.attention_spec import ActivationDtype, variants_of
from kvfold.plugins.cuda.calls import Launch, resolve, workspace_bytes
from kvfold.plugins.cuda.compile_kernels import compile_library
from kvfold.plugins.paged_attention.inputs import Inputs
from kvfold.runtime.engine.cuda.device import Device
from tests.plugins.cuda.interpreter import (
    CACHES,
    TORCH_TYPES,
    as_numpy,
    move_ids,
    shapes_of,
    spec_of,
    tensors_of,
)

# What a consumer of another layer's cache does not have.
PRODUCERS_OWN = ("key", "value", "slot_mapping")
# More than this a kernel must ask for (CUDA C++ Programming Guide, compute capabilities).
STATIC_SHARED_BYTES = 48 * 1024
C_TYPES: dict[str, Any] = {"pointer": ctypes.c_void_p, "int32": ctypes.c_int32, "float32": ctypes.c_float}
SCRATCH = (("pointer", 0), ("pointer", 0))  # Triton's global and profile scratch, unused by our kernels


def call(
    device: Device,
    directory: Path,
    inputs: Inputs,
    activation: ActivationDtype,
    writes: bool = True,
    first_page: int = 0,
) -> list[np.ndarray]:
    """Output, key cache and value cache; floats come back as float32, unchanged in value.

    Args:
        device: that gets the memory and frees it when it is closed.
        directory: an existing folder for the kernels.
        inputs: arrays; activations and float caches are rounded to `activation`.
        activation: type of query, key, value, output and float caches.
        writes: False launches the variants of a consumer.
        first_page: added to every page id, in a pool that is so much larger.
    """
    spec, shapes = spec_of(inputs, activation, writes), shapes_of(inputs)
    library = compile_library(variants_of(spec), (device.architecture,), directory)
    tensors = tensors_of(inputs, activation)
    move_ids(tensors, spec.page_size, first_page)
    width = spec.attributes.num_heads * spec.head_size
    # NaN throughout: nothing may be read before it is written.
    tensors["output"] = torch.full((shapes.tokens, width), torch.nan, dtype=TORCH_TYPES[activation])
    buffers, before = {}, {}
    for name, tensor in tensors.items():
        if not writes and name in PRODUCERS_OWN:
            continue
        before[name] = first_page * bytes_of(tensor[0]).size if name in CACHES else 0
        buffers[name] = device.allocate(before[name] + bytes_of(tensor).size)
        upload(device, buffers[name] + before[name], bytes_of(tensor))
    size = workspace_bytes(library, (device.architecture,), spec, shapes)
    workspace = device.allocate(size)
    upload(device, workspace, np.full(size, 255, np.uint8))
    for each in resolve(library, device.architecture, spec, shapes, buffers, workspace):
        launch(device, directory, each)
    return [
        as_numpy(download(device, buffers[name] + before[name], tensors[name]))
        for name in ("output", *CACHES)
    ]


def launch(device: Device, directory: Path, call: Launch) -> None:
    """Put one kernel on the device's stream, in the calls that `plugins/cuda/cpp/launcher.cc` makes."""
    kernel = call.kernel
    function = device.load_kernel((directory / kernel.file).read_bytes(), kernel.symbol)
    if kernel.shared_bytes > STATIC_SHARED_BYTES:
        most = device.driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        device.call("cuFuncSetAttribute", function, most, kernel.shared_bytes)
    values = [C_TYPES[kind](value) for kind, value in (*call.arguments, *SCRATCH)]
    pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    threads = 32 * kernel.num_warps
    device.launch_kernel(function, call.grid, threads, kernel.shared_bytes, ctypes.addressof(pointers))


def bytes_of(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's content, uint8 [bytes]."""
    content: np.ndarray = tensor.contiguous().flatten().view(torch.uint8).numpy()
    return content


def upload(device: Device, address: int, content: np.ndarray) -> None:
    """Copy bytes to the device, through pinned memory."""
    pinned = device.allocate_pinned(max(content.size, 1))[: content.size]
    pinned[:] = content
    device.upload(address, pinned)


def download(device: Device, address: int, like: torch.Tensor) -> torch.Tensor:
    """A tensor of the shape and type of `like` from the device, once its stream is done."""
    pinned = device.allocate_pinned(bytes_of(like).size)
    device.download(pinned, address)
    device.synchronize()
    return torch.from_numpy(pinned.copy()).view(like.dtype).reshape(like.shape)
