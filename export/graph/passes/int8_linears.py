"""Gemm -> kvfold::Int8Linear, with the weight quantised and packed for the CPU kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial

import onnx_ir as ir

from kvfold.export.graph.constants import add_lazy_constant
from kvfold.export.graph.linears import Linear, check_width, find_linears, replace_linear
from kvfold.plugins.int8_linear.packing import PackedWeight, pack_weight, packed_shape
from kvfold.plugins.int8_linear.schema import (
    BLOCK_OUT,
    DOMAIN,
    MAX_IN_FEATURES,
    OP_TYPE,
    OPSET,
    ActivationBits,
)


def apply(model: ir.Model, activation_bits: Mapping[str, ActivationBits]) -> int:
    """Rewrite the linears with these names; raises ExportError for one that is too wide.

    A weight is quantised when the graph is written. Its constants stand side by side, so one is held at a
    time.
    """
    matches = [linear for linear in find_linears(model) if linear.name in activation_bits]
    pack = lru_cache(maxsize=1)(lambda index: pack_weight(matches[index].weight))
    for index, linear in enumerate(matches):
        _replace(model, linear, activation_bits[linear.name], partial(pack, index))
    model.opset_imports[DOMAIN] = OPSET
    return len(matches)


def _replace(
    model: ir.Model, linear: Linear, activation_bits: ActivationBits, packed: Callable[[], PackedWeight]
) -> None:
    check_width(linear, "int8", MAX_IN_FEATURES)
    out_features, in_features = linear.shape
    blocks = packed_shape(out_features, in_features)
    constants: list[ir.Value | None] = [
        add_lazy_constant(model, f"{linear.name}.{name}", dtype, shape, make)
        for name, dtype, shape, make in (
            ("weight_int8", ir.DataType.INT8, blocks, lambda: packed().weight),
            ("weight_scale", ir.DataType.FLOAT, (out_features,), lambda: packed().weight_scale),
            ("weight_sum", ir.DataType.INT32, (blocks[0] * BLOCK_OUT,), lambda: packed().weight_sum),
        )
    ]
    if linear.bias is not None:
        constants.append(linear.bias)
    replace_linear(model, linear, OP_TYPE, constants, activation_bits)
