"""Build `engine/cpu`: the graph lowered for ONNX Runtime's CPU provider, and the facts of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from export.graph.lower import lower_for_cpu
from export.quantize.precision import Quantization
from pipeline.workspace import Workspace
from runtime.bundle import CONFIG, FOLD_PLAN, ONNX_MODEL, QUANTIZATION, SCALES, WEIGHTS, hash_file
from runtime.engine.config import EngineConfig


def build_cpu(workspace: Workspace, directory: Path) -> None:
    """Write model.onnx, its data and engine.json into an existing folder.

    Raises:
        ExportError: a graph pass did not find what it must.
        TargetError: the plan stores a cache in a type that the CPU kernels do not read.
    """
    root = workspace.root
    quantization = Quantization.model_validate_json((root / QUANTIZATION).read_bytes())
    passes = lower_for_cpu(root / ONNX_MODEL, directory, workspace.plan, quantization.precision)
    digests = [hash_file(root / name) for name in (CONFIG, FOLD_PLAN, WEIGHTS, SCALES, QUANTIZATION)]
    EngineConfig(
        target="cpu",
        vocab_size=workspace.config.vocab_size,
        max_context_length=workspace.config.max_position_embeddings,
        fingerprint=hashlib.sha256("".join(digests).encode()).hexdigest(),
        passes=passes,
    ).save(directory)
