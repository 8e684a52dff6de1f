"""A model of one PagedAttention node, and the reference's answer to the same inputs."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper

from kvfold.plugins.cpu import cpu_library as library
from kvfold.plugins.paged_attention.inputs import Inputs
from kvfold.plugins.paged_attention.reference import paged_attention
from kvfold.plugins.paged_attention.schema import DOMAIN, INPUTS, OP_TYPE, OPSET, OUTPUTS

CACHES = OUTPUTS[1:]


def node_of(inputs: Inputs, outputs: tuple[str, ...] = OUTPUTS) -> onnx.NodeProto:
    """The node; absent optional inputs have empty names."""
    names = [name if name in inputs.arrays else "" for name in INPUTS]
    return helper.make_node(OP_TYPE, names, list(outputs), domain=DOMAIN, **asdict(inputs.attributes))


def session_of(inputs: Inputs, nodes: list[onnx.NodeProto], threads: int = 2) -> onnxruntime.InferenceSession:
    """An engine of `nodes` over the arrays' types, all extents free; every output is a graph output."""
    arrays = inputs.arrays
    types = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in arrays.items()}
    values = [
        helper.make_tensor_value_info(name, types[name], [None] * array.ndim)
        for name, array in arrays.items()
    ]
    results = []
    for node in nodes:
        kinds = [onnx.TensorProto.FLOAT, types["key_cache"], types["value_cache"]]
        pairs = zip(node.output, kinds, (2, 4, 4), strict=False)
        results += [helper.make_tensor_value_info(name, kind, [None] * rank) for name, kind, rank in pairs]
    graph = helper.make_graph(nodes, "paged_attention", values, results)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    library.register_ops(options)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(inputs: Inputs, threads: int = 2) -> list[np.ndarray]:
    """Output, key cache and value cache of the kernel; the given arrays stay as they are."""
    session = session_of(inputs, [node_of(inputs)], threads)
    return [np.asarray(array) for array in session.run(None, {**inputs.arrays})]


def expected(inputs: Inputs) -> list[np.ndarray]:
    """The same from the reference."""
    arrays = [
        torch.from_numpy(inputs.arrays[name].copy()) if name in inputs.arrays else None for name in INPUTS
    ]
    return [tensor.numpy() for tensor in paged_attention(*arrays, **asdict(inputs.attributes))]


def relative_error(actual: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference, relative to the reference's largest magnitude; 0 for empty arrays."""
    if not reference.size:
        return 0.0
    return float(np.abs(actual - reference).max() / np.abs(reference).max())
