"""A node's attributes as TensorRT's PluginFields, both ways."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from kvfold.plugins.tensorrt.attributes import ATTRIBUTE_TYPES, Value


def declare_fields(trt: ModuleType) -> Any:
    """Names that the creator takes; TensorRT's parser hands on no other attribute of a node."""
    return trt.PluginFieldCollection([trt.PluginField(name) for name in ATTRIBUTE_TYPES])


class Fields(NamedTuple):
    """Fields and the memory they point into: they do not hold it, so it must outlive them."""

    collection: Any
    arrays: list[np.ndarray]


def write_fields(trt: ModuleType, values: dict[str, Value]) -> Fields:
    """Fields as the parser makes them: int32, float32, and text that ends with a zero byte."""
    kinds = trt.PluginFieldType
    fields, arrays = [], []
    for name, value in values.items():
        if isinstance(value, str):
            data, kind = np.frombuffer(value.encode() + b"\0", dtype=np.int8), kinds.CHAR
        elif isinstance(value, float):
            data, kind = np.array([value], dtype=np.float32), kinds.FLOAT32
        else:
            data, kind = np.array([value], dtype=np.int32), kinds.INT32
        arrays.append(data)
        fields.append(trt.PluginField(name, data, kind))
    return Fields(trt.PluginFieldCollection(fields), arrays)


def read_fields(trt: ModuleType, fields: Iterable[Any]) -> dict[str, Any]:
    """Values by name. One that is no single number and no text comes as it is, for `read_node` to refuse."""
    return {field.name: _value(trt, field) for field in fields}


def _value(trt: ModuleType, field: Any) -> Any:
    kinds = trt.PluginFieldType
    if field.type == kinds.CHAR:
        return bytes(field.data).rstrip(b"\0").decode()
    if field.size != 1:
        return field.data.tolist()
    if field.type in (kinds.INT32, kinds.INT64):
        return int(field.data[0])
    if field.type in (kinds.FLOAT32, kinds.FLOAT64):
        return float(field.data[0])
    return field.data[0]
