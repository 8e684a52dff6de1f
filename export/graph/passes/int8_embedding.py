"""Gather of the embedding -> kvfold::Int8Embedding, over the head's own constants where the two are tied."""

from __future__ import annotations

from functools import lru_cache

import onnx_ir as ir

from kvfold.export.graph.constants import add_lazy_constant
from kvfold.plugins.contract.step import INPUT_IDS
from kvfold.plugins.int8_embedding.schema import DOMAIN, OP_TYPE, OPSET
from kvfold.plugins.int8_linear.packing import pack_weight, packed_shape

_EMBEDDING = "model.embed_tokens"


def apply(model: ir.Model) -> int:
    """Rewrite the lookup of the step's tokens, after `int8_linears`, which may have packed the same table."""
    matches = 0
    for node in list(model.graph):
        table, ids = (*node.inputs, None, None)[:2]
        if node.op_type != "Gather" or table is None or ids is None or ids.name != INPUT_IDS:
            continue
        weight, scale = _head_constants(model, table) or _own_constants(model, table)
        rows, columns = _sizes(table)
        lookup = ir.node(
            OP_TYPE,
            [ids, weight, scale],
            {"rows": rows, "columns": columns},
            domain=DOMAIN,
            name=f"{_EMBEDDING}.{OP_TYPE}",
        )
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], [lookup], [node.outputs[0]], [lookup.outputs[0]]
        )
        model.opset_imports[DOMAIN] = OPSET
        matches += 1
    return matches


def _sizes(table: ir.Value) -> tuple[int, int]:
    constant = table.const_value
    assert constant is not None
    rows, columns = constant.shape.numpy()
    return rows, columns


def _head_constants(model: ir.Model, table: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """Weight and scales of the int8 linear that multiplies by the same table, if there is one."""
    linear = (table.name or "").removesuffix(".weight")
    found = [model.graph.initializers.get(f"{linear}.{name}") for name in ("weight_int8", "weight_scale")]
    weight, scale = found
    return None if weight is None or scale is None else (weight, scale)


def _own_constants(model: ir.Model, table: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The table packed for itself, when the graph is written."""
    rows, columns = _sizes(table)
    constant = table.const_value
    assert constant is not None
    packed = lru_cache(maxsize=1)(lambda: pack_weight(constant.numpy()))
    int8, float32 = ir.DataType.INT8, ir.DataType.FLOAT
    blocks = packed_shape(rows, columns)
    return (
        add_lazy_constant(model, f"{_EMBEDDING}.weight_int8", int8, blocks, lambda: packed().weight),
        add_lazy_constant(
            model, f"{_EMBEDDING}.weight_scale", float32, (rows,), lambda: packed().weight_scale
        ),
    )
