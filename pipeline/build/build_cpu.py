"""Build `engine/cpu`: the graph lowered for ONNX Runtime's CPU provider, and the facts of it."""

from __future__ import annotations

from pathlib import Path

from kvfold.export.graph.lower_cpu import lower_for_cpu
from kvfold.pipeline.build.engine_facts import engine_config
from kvfold.pipeline.workspace.workspace import Workspace
from kvfold.plugins.contract.step import MODEL_FILE


def build_cpu(workspace: Workspace, directory: Path) -> None:
    """Write model.onnx, its data and engine.json into an existing folder.

    Raises:
        ExportError: a graph pass did not find what it must.
        TargetError: the plan stores a cache in a type that the CPU kernels do not read.
    """
    model, precision = workspace.root / MODEL_FILE, workspace.quantization.precision
    passes = lower_for_cpu(model, directory, workspace.plan, precision)
    engine_config(workspace, passes).save(directory)
