"""ONNX models of attention nodes in the form that TensorRT's parser takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kvfold.plugins.cuda.attention_spec import AttentionSpec
from kvfold.plugins.paged_attention.schema import DOMAIN, OP_TYPE, OPSET, Attributes
from kvfold.plugins.tensorrt.attributes import Node

ATTRIBUTES = Attributes(
    num_heads=6,
    kv_num_heads=2,
    scale=0.125,
    local_window_size=40,
    sink_size=4,
    k_quant_type="PER_CHANNEL",
    v_quant_type="PER_CHANNEL",
)
SPEC = AttentionSpec(ATTRIBUTES, head_size=64, page_size=32, activation_dtype="float16", cache_dtype="int8")
SHARED = (
    "key_cache", "value_cache", "cumulative_sequence_length", "past_seqlens", "block_table", "cos_cache",
    "sin_cache",
)  # fmt: skip
PRODUCER = Node("layers.0.attention", ATTRIBUTES, ("query", *SHARED, "slot_mapping", "k_scale", "v_scale"))
# A producer whose keys and values come apart from the query.
DONOR = replace(PRODUCER, inputs=("query", "key", "value", *PRODUCER.inputs[1:]))
CONSUMER = Node("layers.1.attention", ATTRIBUTES, ("query", *SHARED, "k_scale", "v_scale"))
CACHES = ("key_cache", "value_cache")
# Per node; all else is shared.
OWN = ("query", "key", "value")
TYPES = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16, "float32": TensorProto.FLOAT}
TYPES |= {"int8": TensorProto.INT8, "int32": TensorProto.INT32}
Shape = tuple[int | str, ...]
SHAPES: dict[str, Shape] = {
    "query": ("tokens", (6 + 2 * 2) * 64),
    "key": ("tokens", 2 * 64),
    "value": ("tokens", 2 * 64),
    "key_cache": ("pages", 32, 2, 64),
    "value_cache": ("pages", 32, 2, 64),
    "cumulative_sequence_length": ("sequences_and_one",),
    "past_seqlens": ("sequences",),
    "block_table": ("sequences", "table_width"),
    "slot_mapping": ("tokens",),
}
# Constants of the graph.
ARRAYS = {
    "cos_cache": np.ones((1024, 32), np.float32),
    "sin_cache": np.zeros((1024, 32), np.float32),
    "k_scale": np.full((2, 1, 64), 0.02, np.float32),
    "v_scale": np.full((2, 1, 64), 0.02, np.float32),
}


@dataclass(frozen=True)
class Model:
    """Attention nodes, each after a producer reading the caches that it returns.

    Attributes:
        nodes: in order.
        values: attributes of the first node that differ from its `Node`; None removes one.
        shapes: of graph inputs that differ from SHAPES.
        dtypes: of graph inputs that differ from float16 activations, int8 caches and int32 tables.
    """

    nodes: tuple[Node, ...] = (PRODUCER,)
    values: Mapping[str, Any] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)

    def tensors(self) -> Iterator[tuple[Node, list[str], list[str]]]:
        """Each node with the names of its input and output tensors."""
        caches = {name: name for name in CACHES}
        for index, node in enumerate(self.nodes):
            names = {name: f"{name}.{index}" for name in OWN} | caches
            outputs = [f"output.{index}", *node.outputs[1:]]
            yield node, [names.get(name, name) for name in node.inputs], outputs
            caches |= {name.removesuffix("_out"): name for name in outputs[1:]}

    def inputs(self) -> dict[str, tuple[str, Shape]]:
        """Type and shape of every graph input."""
        found = {}
        for node, tensors, _ in self.tensors():
            for name, tensor in zip(node.inputs, tensors, strict=True):
                if name not in ARRAYS and not tensor.endswith("_out"):
                    default = "int8" if name in CACHES else "float16" if name in OWN else "int32"
                    width = ("tokens", 6 * 64) if name == "query" and not node.packed else SHAPES[name]
                    found[tensor] = self.dtypes.get(tensor, default), self.shapes.get(tensor, width)
        return found

    def to_bytes(self) -> bytes:
        """The model as TensorRT's parser reads it."""
        types = self.inputs()
        inputs = [_value(name, *each) for name, each in types.items()]
        outputs: list[onnx.ValueInfoProto] = []
        nodes: list[onnx.NodeProto] = []
        for node, tensors, results in self.tensors():
            nodes.append(_node(node, tensors, results, {} if nodes else self.values))
            outputs.append(_value(results[0], types["query.0"][0], ("tokens", 6 * 64)))
            outputs += [_value(name, *types[name.removesuffix("_out")]) for name in results[1:]]
        constants = [numpy_helper.from_array(each, name) for name, each in ARRAYS.items()]
        graph = helper.make_graph(nodes, "attention", inputs, outputs, constants)
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, OPSET)]
        model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
        return model


def _value(name: str, dtype: str, shape: Shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TYPES[dtype], shape)


def _node(node: Node, inputs: list[str], outputs: list[str], changed: Mapping[str, Any]) -> onnx.NodeProto:
    proto = helper.make_node(OP_TYPE, inputs, outputs, name=node.name, domain=DOMAIN)
    for name, value in (node.values() | dict(changed)).items():
        if value is not None:
            proto.attribute.append(helper.make_attribute(name, value))
    return proto
