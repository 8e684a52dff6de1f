"""Initializers of a graph: new ones, and existing ones in another float type."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from kvfold.plugins.contract.errors import ExportError
from kvfold.plugins.int8_linear.packing import row_blocks


def add_constant(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    """A named initializer; the same name twice gives the same value."""
    return _register(model, name, ir.tensor(array, name=name))


def add_lazy_constant(
    model: ir.Model, name: str, dtype: ir.DataType, shape: tuple[int, ...], make: Callable[[], np.ndarray]
) -> ir.Value:
    """A named initializer that is made when the graph is written, and dropped again."""
    return _register(model, name, lazy_tensor(name, dtype, shape, make))


def lazy_tensor(
    name: str, dtype: ir.DataType, shape: tuple[int, ...], make: Callable[[], np.ndarray]
) -> ir.LazyTensor:
    """A tensor that `make` gives anew on each access."""
    return ir.LazyTensor(
        lambda: ir.tensor(make(), dtype=dtype, name=name), dtype=dtype, shape=ir.Shape(shape), name=name
    )


def cast_constant(model: ir.Model, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """The initializer `value` in another float type; it is converted when the graph is written.

    Raises:
        ExportError: (on writing) one of its elements is beyond the range of `dtype`.
    """
    name, source = f"{value.name}.{dtype.name.lower()}", value.const_value
    assert source is not None

    def convert() -> np.ndarray:
        wide = source.numpy()
        array = np.empty(wide.shape, dtype.numpy())
        flat, target = wide.reshape(-1), array.reshape(-1)
        for part in row_blocks(flat.shape):
            with np.errstate(over="ignore"):
                target[part] = flat[part]
            if not np.isfinite(target[part].astype(np.float32)).all():
                raise ExportError(
                    f"{value.name} has elements beyond the range of {dtype.name.lower()}; "
                    "bfloat16 activations hold them"
                )
        return array

    return add_lazy_constant(model, name, dtype, tuple(source.shape.numpy()), convert)


def _register(model: ir.Model, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    existing = model.graph.initializers.get(name)
    if existing is not None:
        return existing
    value = ir.Value(
        name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value
