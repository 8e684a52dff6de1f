"""The op of ONNX Runtime's CUDA provider on the host; ONNX Runtime, C++ and kernels are the real ones.

The op is registered for the CPU provider (`host_registration.cc`), and its launches run on `host_gpu`. What
that does not show needs a GPU: the driver, streams and their order, the CUDA provider's memory, compiled
kernels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper

from kvfold.plugins.cuda.attention_spec import ActivationDtype
from kvfold.plugins.cuda.kernel_library import OPENED_FILE
from kvfold.plugins.paged_attention.inputs import Inputs
from kvfold.plugins.paged_attention.schema import DOMAIN, INPUTS, OP_TYPE, OPSET, OUTPUTS
from tests.plugins.cuda.interpreter import CACHES, TORCH_TYPES, Tiles, as_numpy, spec_of, tensors_of
from tests.plugins.cuda.onnxruntime.host_gpu import Launched, host_gpu

# What a consumer of another layer's cache does not have.
PRODUCERS_OWN = ("key", "value", "slot_mapping")
ELEMENT_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.int8: TensorProto.INT8,
    torch.int32: TensorProto.INT32,
}


@dataclass(frozen=True)
class Libraries:
    """Compiled for the tests: the op for the CPU provider, and the driver that it opens."""

    op: Path
    driver: Path


@dataclass(frozen=True)
class Call:
    """One node, and what it is given.

    Attributes:
        inputs: arrays and attributes.
        activation: type of query, key, value, output and float caches.
        writes: False is a consumer of another layer's cache.
        followers: so many consumers after it, which read the caches that it returns, with its query.
        changed: attributes that differ; None removes one.
        outputs: names of the node's; an empty one is absent.
        in_place: its caches come out where they go in.
        tiles: tuning constants.
    """

    inputs: Inputs
    activation: ActivationDtype = "float16"
    writes: bool = True
    followers: int = 0
    changed: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = (*OUTPUTS, "scratch")
    in_place: bool = True
    tiles: Tiles = field(default_factory=Tiles)


def run(libraries: Libraries, folder: Path, call: Call) -> tuple[list[np.ndarray], list[Launched]]:
    """Output of each node, key cache and value cache, floats as float32; and what was launched.

    Args:
        libraries: of this process, always the same.
        folder: for the kernels.
        call: what to run.
    """
    gpu, tensors = host_gpu(libraries.driver), _tensors(call)
    specs = [spec_of(call.inputs, call.activation, writes) for writes in (call.writes, False)]
    library = gpu.kernels(specs, call.tiles, folder)
    gpu.clear()
    functions = ctypes.CDLL(str(libraries.op))
    functions.kvfold_open_kernels.restype = ctypes.c_char_p
    if problem := functions.kvfold_open_kernels(str(folder / OPENED_FILE).encode()):
        raise ValueError(problem.decode())
    width = specs[0].attributes.num_heads * specs[0].head_size
    results = {
        f"output.{index}": torch.full(
            (len(tensors["query"]), width), torch.nan, dtype=TORCH_TYPES[call.activation]
        )
        for index in range(1 + call.followers)
    }
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.enable_mem_pattern = False
    options.register_custom_ops_library(str(libraries.op))
    model = _model(call, tensors, library.sha256)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, tensor in tensors.items():
        _bind(binding.bind_input, name, tensor)
    for name, tensor in results.items():
        _bind(binding.bind_output, name, tensor)
    for name in CACHES if call.writes else ():
        _bind(binding.bind_output, f"{name}_out", tensors[name] if call.in_place else tensors[name].clone())
    session.run_with_iobinding(binding)
    if gpu.failure:
        raise gpu.failure
    caches = (tensors[name] for name in CACHES)
    return [as_numpy(each) for each in (*results.values(), *caches)], list(gpu.launches)


def _tensors(call: Call) -> dict[str, torch.Tensor]:
    """Graph inputs by name. A consumer's query holds no key and value."""
    tensors = tensors_of(call.inputs, call.activation)
    width = call.inputs.attributes.num_heads * tensors["key_cache"].shape[3]
    alone = tensors["query"][:, :width].contiguous()
    if call.writes:
        return tensors | ({"follower.query": alone} if call.followers else {})
    return {name: tensor for name, tensor in tensors.items() if name not in PRODUCERS_OWN} | {"query": alone}


def _model(call: Call, tensors: dict[str, torch.Tensor], kernels: str) -> bytes:
    """The node and its followers; every extent is free."""
    attributes = asdict(call.inputs.attributes) | {"kernels": kernels} | call.changed
    attributes = {name: value for name, value in attributes.items() if value is not None}
    names = {name: name for name in tensors}
    outputs = [call.outputs[0] and "output.0", *call.outputs[1:]]
    if not call.writes:
        outputs[1:3] = ["", ""]
    nodes = [_node(names, outputs, attributes, "attention.0")]
    own = {name: name for name in tensors if name not in PRODUCERS_OWN}
    own |= {"query": "follower.query"} | {name: f"{name}_out" for name in CACHES}
    for index in range(1, 1 + call.followers):
        outputs = [f"output.{index}", "", "", f"scratch.{index}"]
        before = nodes[-1].output[3]
        nodes.append(_node(own, outputs, attributes, f"attention.{index}", before))
    values = [
        helper.make_tensor_value_info(name, ELEMENT_TYPES[tensor.dtype], [None] * tensor.ndim)
        for name, tensor in tensors.items()
    ]
    activation, cache = (ELEMENT_TYPES[tensors[name].dtype] for name in ("query", "key_cache"))
    results = [helper.make_tensor_value_info(node.output[0], activation, [None, None]) for node in nodes]
    if call.writes:
        results += [helper.make_tensor_value_info(f"{name}_out", cache, [None] * 4) for name in CACHES]
    graph = helper.make_graph(nodes, "attention", values, results)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, OPSET)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return model


def _node(
    names: dict[str, str], outputs: list[str], attributes: dict[str, Any], name: str, scratch: str = ""
) -> onnx.NodeProto:
    """A node after the one whose scratch is named."""
    inputs = [*(names.get(each, "") for each in INPUTS), scratch]
    return helper.make_node(OP_TYPE, inputs, outputs, name=name, domain=DOMAIN, **attributes)


def _bind(bind: Callable[..., None], name: str, tensor: torch.Tensor) -> None:
    bind(name, "cpu", 0, ELEMENT_TYPES[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())
