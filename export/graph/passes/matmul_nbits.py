"""Gemm -> com.microsoft::MatMulNBits, ONNX Runtime's own linear with weights in blocks of 4 bits.

Its blocks are symmetric here, w = scale * (code - 8), as its fast kernels read them. A zero point of the
activations' type could hold a minimum, but with one the CUDA kernel first writes the weight in floats, at
every step. So what a block's minimum adds, minimum + 8 * scale for every input of the block, is a second
product with the sums of the inputs' blocks: a 32nd of the width. Codes and scales stay what they are; these
offsets and, in bfloat16, the scales are rounded to the activations' type once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import onnx_ir as ir
import torch

from kvfold.export.graph.constants import add_constant, add_lazy_constant
from kvfold.export.graph.linears import Linear, find_linears
from kvfold.export.quantize.int4.stored_blocks import StoredBlocks
from kvfold.export.quantize.precision import Precision
from kvfold.plugins.int4_linear.packing import BlockWeight
from kvfold.plugins.int4_linear.schema import BLOCK, CENTER

INT4: tuple[Precision, ...] = ("int4", "int4_a16")
DOMAIN, OPSET = "com.microsoft", 1


def apply(model: ir.Model, blocks: StoredBlocks, dtype: ir.DataType) -> int:
    """Rewrite the linears that run in 4 bits; scales and offsets in `dtype`, the activations' type.

    Blocks are read when the graph is written, one linear at a time.
    """
    precision = blocks.quantization.precision
    matches = [linear for linear in find_linears(model) if precision.get(linear.name) in INT4]

    @lru_cache(maxsize=1)
    def read(index: int) -> BlockWeight:
        linear = matches[index]
        return blocks.of(linear.name, torch.from_numpy(linear.weight)).to_numpy()

    for index, linear in enumerate(matches):
        product = _product(model, linear, dtype, partial(read, index))
        nodes = [product]
        if not blocks.is_symmetric(linear.name):
            nodes += _offset(model, linear, product.outputs[0], dtype, partial(read, index))
        ir.convenience.replace_nodes_and_values(
            model.graph, linear.node, [linear.node], nodes, [linear.output], [nodes[-1].outputs[0]]
        )
    if matches:
        model.opset_imports[DOMAIN] = OPSET
    return len(matches)


def _product(model: ir.Model, linear: Linear, dtype: ir.DataType, read: Callable[[], BlockWeight]) -> ir.Node:
    """x @ (scale * (codes - 8))^T + bias."""
    out_features, in_features = linear.shape
    count = -(-in_features // BLOCK)
    codes = add_lazy_constant(
        model,
        f"{linear.name}.weight_nbits",
        ir.DataType.UINT8,
        (out_features, count, BLOCK // 2),
        lambda: pack_codes(read().codes),
    )
    scale = add_lazy_constant(
        model,
        f"{linear.name}.weight_scale",
        dtype,
        (out_features, count),
        lambda: read().scale.astype(dtype.numpy()),
    )
    bias = [] if linear.bias is None else [None, None, linear.bias]
    return ir.node(
        "MatMulNBits",
        [linear.x, codes, scale, *bias],
        {"K": in_features, "N": out_features, "bits": 4, "block_size": BLOCK},
        domain=DOMAIN,
        name=f"{linear.name}.MatMulNBits",
    )


def _offset(
    model: ir.Model, linear: Linear, product: ir.Value, dtype: ir.DataType, read: Callable[[], BlockWeight]
) -> list[ir.Node]:
    """product + (sums of x's blocks) @ (minimum + 8 * scale)^T."""
    out_features, in_features = linear.shape
    count, name, x, nodes = -(-in_features // BLOCK), linear.name, linear.x, []
    if in_features % BLOCK:
        pads = add_constant(model, f"{name}.pads", np.array([0, 0, 0, -in_features % BLOCK]))
        nodes.append(ir.node("Pad", [x, pads], name=f"{name}.Pad"))
        x = nodes[-1].outputs[0]
    shape = add_constant(model, f"block_shape_{count}", np.array([0, count, BLOCK]))
    nodes.append(ir.node("Reshape", [x, shape], name=f"{name}.Reshape"))
    axis = add_constant(model, "block_axis", np.array([2]))
    nodes.append(
        ir.node("ReduceSum", [nodes[-1].outputs[0], axis], {"keepdims": 0}, name=f"{name}.ReduceSum")
    )
    offset = add_lazy_constant(
        model,
        f"{name}.weight_offset",
        dtype,
        (out_features, count),
        lambda: offsets(read()).astype(dtype.numpy()),
    )
    nodes.append(
        ir.node("Gemm", [nodes[-1].outputs[0], offset, product], {"transB": 1}, name=f"{name}.offset.Gemm")
    )
    return nodes


def pack_codes(codes: np.ndarray) -> np.ndarray:
    """uint8 [out, blocks, 16] of codes [out, in]: two inputs a byte, the second's in the high half."""
    out_features, in_features = codes.shape
    padded = np.pad(codes, ((0, 0), (0, -in_features % BLOCK)), constant_values=CENTER)
    pairs = padded.reshape(out_features, -1, BLOCK // 2, 2)
    return np.ascontiguousarray(pairs[..., 0] | pairs[..., 1] << np.uint8(4))


def offsets(weight: BlockWeight) -> np.ndarray:
    """float32 [out, blocks]: what a block's values are more than those of a symmetric block."""
    assert weight.minimum is not None, "calibration said that these blocks have minima"
    return weight.minimum.astype(np.float32) + CENTER * weight.scale.astype(np.float32)
