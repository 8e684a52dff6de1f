"""Initializers of a graph: new ones, and existing ones in another float type."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from kvfold.plugins.contract.errors import ExportError


def add_constant(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    """A named initializer; the same name twice gives the same value."""
    return _register(model, name, ir.tensor(array, name=name))


def cast_constant(model: ir.Model, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """The initializer `value` in another float type; it is converted when the graph is written.

    Raises:
        ExportError: (on writing) one of its elements is beyond the range of `dtype`.
    """
    name, source = f"{value.name}.{dtype.name.lower()}", value.const_value
    assert source is not None

    def convert() -> ir.TensorProtocol:
        with np.errstate(over="ignore"):
            array = source.numpy().astype(dtype.numpy())
        if not np.isfinite(array.astype(np.float32)).all():
            raise ExportError(
                f"{value.name} has elements beyond the range of {dtype.name.lower()}; "
                "bfloat16 activations hold them"
            )
        return ir.tensor(array, dtype=dtype, name=name)

    return _register(
        model, name, ir.LazyTensor(convert, dtype=dtype, shape=ir.Shape(source.shape.numpy()), name=name)
    )


def _register(model: ir.Model, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    existing = model.graph.initializers.get(name)
    if existing is not None:
        return existing
    value = ir.Value(
        name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value
