"""Gemm -> kvfold::Int4Linear, with the weight's blocks packed for the CPU kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial

import numpy as np
import onnx_ir as ir
import torch

from kvfold.export.graph.constants import add_lazy_constant
from kvfold.export.graph.linears import Linear, check_width, find_linears, replace_linear
from kvfold.export.quantize.int4.stored_blocks import StoredBlocks
from kvfold.plugins.int4_linear.packing import PackedWeight, pack_weight
from kvfold.plugins.int4_linear.schema import BLOCK, DOMAIN, MAX_IN_FEATURES, OP_TYPE, OPSET, TILE_OUT
from kvfold.plugins.int8_linear.schema import ActivationBits


def apply(model: ir.Model, activation_bits: Mapping[str, ActivationBits], blocks: StoredBlocks) -> int:
    """Rewrite the linears with these names; raises ExportError for one that is too wide.

    Blocks are read, or found, when the graph is written. A linear's constants stand side by side, so one
    linear is held at a time.
    """
    matches = [linear for linear in find_linears(model) if linear.name in activation_bits]

    @lru_cache(maxsize=1)
    def pack(index: int) -> PackedWeight:
        weight = torch.from_numpy(matches[index].weight)
        return pack_weight(blocks.of(matches[index].name, weight).to_numpy())

    for index, linear in enumerate(matches):
        minimum = not blocks.is_symmetric(linear.name)
        _replace(model, linear, activation_bits[linear.name], minimum, partial(pack, index))
    if matches:
        model.opset_imports[DOMAIN] = OPSET
    return len(matches)


def _replace(
    model: ir.Model,
    linear: Linear,
    activation_bits: ActivationBits,
    minimum: bool,
    packed: Callable[[], PackedWeight],
) -> None:
    check_width(linear, "int4", MAX_IN_FEATURES)
    constants = _constants(model, linear, minimum, packed)
    if linear.bias is not None:
        constants += [linear.bias] if minimum else [None, linear.bias]
    replace_linear(model, linear, OP_TYPE, constants, activation_bits)


def _constants(
    model: ir.Model, linear: Linear, minimum: bool, packed: Callable[[], PackedWeight]
) -> list[ir.Value | None]:
    """Codes, scales and minima of a linear's blocks."""
    out_features, in_features = linear.shape
    tiles, count = -(-out_features // TILE_OUT), -(-in_features // BLOCK)
    codes, numbers = (tiles, count, BLOCK // 8, TILE_OUT, 4), (tiles, count, TILE_OUT)
    float16 = ir.DataType.FLOAT16

    def minima() -> np.ndarray:
        found = packed().weight_minimum
        assert found is not None, "calibration said that these blocks have minima"
        return found

    kinds = [
        ("weight_int4", ir.DataType.UINT8, codes, lambda: packed().weight),
        ("weight_scale", float16, numbers, lambda: packed().weight_scale),
        ("weight_minimum", float16, numbers, minima),
    ]
    return [
        add_lazy_constant(model, f"{linear.name}.{name}", dtype, shape, make)
        for name, dtype, shape, make in kinds[: 3 if minimum else 2]
    ]
