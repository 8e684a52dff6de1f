"""ONNX files as kvfold writes them: the graph, and every tensor as external data beside it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from kvfold.plugins.contract.step import DATA_SUFFIX


def save_model(model: ir.Model, path: Path) -> None:
    """Write the graph to `path` and its weights to `path` + `.data`, so 2 GB is no limit."""
    ir.save(model, path, external_data=path.name + DATA_SUFFIX)


def save_graph(model: ir.Model, path: Path) -> None:
    """Write a graph that `load_model` read from `path` there again; its weights stay beside it."""
    ir.save(model, path)


def load_model(path: Path) -> ir.Model:
    """Read a graph; its weights are mapped from disk, not loaded."""
    return ir.load(path)
