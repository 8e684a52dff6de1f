"""ONNX files as kvfold writes them: the graph, and every tensor as external data beside it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from kvfold.plugins.contract.progress import Progress, unheard
from kvfold.plugins.contract.step import DATA_SUFFIX


def save_model(model: ir.Model, path: Path, progress: Progress = unheard) -> None:
    """Write the graph to `path` and its weights to `path` + `.data`, so 2 GB is no limit."""
    constants = [value.const_value for value in model.graph.initializers.values()]
    whole = sum(constant.nbytes for constant in constants if constant is not None)
    ir.save(
        model,
        path,
        external_data=path.name + DATA_SUFFIX,
        callback=lambda tensor, information: progress(min(1.0, information.offset / max(1, whole))),
    )


def save_graph(model: ir.Model, path: Path) -> None:
    """Write a graph that `load_model` read from `path` there again; its weights stay beside it."""
    ir.save(model, path)


def load_model(path: Path) -> ir.Model:
    """Read a graph; its weights are mapped from disk, not loaded."""
    return ir.load(path)
