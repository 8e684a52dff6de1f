"""Weights of a graph by reference: read from a mapping when the graph is written, one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor

from kvfold.export.graph.constants import lazy_tensor
from kvfold.export.model.decoder import PACKED
from kvfold.plugins.contract.errors import ExportError
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.step import input_names

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def load_graph(path: Path, plan: FoldPlan, weights: Mapping[str, Tensor]) -> ir.Model:
    """A graph of `export_graph` with its weights as constants, none of which is read yet.

    Args:
        path: of the graph.
        plan: that it was exported for.
        weights: float32 tensors by Hugging Face names, or by the decoder's.

    Raises:
        ExportError: a weight that the graph names is not there.
    """
    model = ir.load(path)
    step_inputs = set(input_names(plan))
    for value in [each for each in model.graph.inputs if each.name not in step_inputs]:
        model.graph.inputs.remove(value)
        value.const_value = _weight(value, weights)
        model.graph.register_initializer(value)
    return model


def _weight(value: ir.Value, weights: Mapping[str, Tensor]) -> ir.LazyTensor:
    name, shape = value.name, value.shape
    assert name is not None and shape is not None
    parts = _stored_names(name, weights)

    def read() -> Tensor:
        tensors = [weights[part] for part in parts]
        tensor = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        if tensor.shape != shape.numpy():
            raise ExportError(f"weight {name} has shape {tuple(tensor.shape)}, the graph asks for {shape}")
        return tensor.float()

    return lazy_tensor(name, ir.DataType.FLOAT, shape.numpy(), lambda: read().numpy())


def _stored_names(name: str, weights: Mapping[str, Tensor]) -> list[str]:
    """The tensors that a weight of the decoder is made of, in order."""
    if name in weights:
        return [name]
    for packed, parts in PACKED.items():
        module, _, leaf = name.rpartition(".")
        if module.endswith(f".{packed}"):
            prefix = module.removesuffix(packed.rpartition(".")[2])
            found = [each for part in parts if (each := f"{prefix}{part}.{leaf}") in weights]
            if found:
                return found
    if name == _HEAD and _EMBEDDING in weights:
        return [_EMBEDDING]
    raise ExportError(f"the graph has a weight {name}, which the weights do not; export the graph again")
