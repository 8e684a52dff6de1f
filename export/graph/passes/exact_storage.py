"""Weights stored in half the bytes where that is exact: a checkpoint in bfloat16 or float16 stays so.

What the graph computes with is float32 as before: a Cast stands behind each such weight.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from kvfold.export.graph.constants import cast_constant
from kvfold.plugins.contract.progress import Progress, unheard
from kvfold.plugins.int8_linear.packing import row_blocks

_HALVES = (ir.DataType.BFLOAT16, ir.DataType.FLOAT16)


def apply(model: ir.Model, progress: Progress = unheard) -> int:
    """Store weights so, and count them; each matrix is read once for that, one at a time."""
    matches = 0
    values = list(model.graph.initializers.values())
    for index, value in enumerate(values):
        progress(index / len(values))
        if value.dtype != ir.DataType.FLOAT or value.shape is None or len(value.shape) != 2:
            continue
        name, constant = value.name, value.const_value
        assert name is not None and constant is not None
        half = exact_half(constant)
        if half is None:
            continue
        cast = ir.node("Cast", [cast_constant(model, value, half)], {"to": ir.DataType.FLOAT.value})
        cast.name, cast.outputs[0].name = f"{name}.Cast", f"{name}.float32"
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), value.shape
        ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        model.graph.insert_before(model.graph[0], cast)
        del model.graph.initializers[name]
        matches += 1
    return matches


def exact_half(constant: ir.TensorProtocol) -> ir.DataType | None:
    """A type of two bytes that holds every element of a float32 constant, or None."""
    array = constant.numpy()
    for half in _HALVES:
        with np.errstate(over="ignore"):
            if all(
                np.array_equal(array[r], array[r].astype(half.numpy()).astype(np.float32))
                for r in row_blocks(array.shape)
            ):
                return half
    return None
