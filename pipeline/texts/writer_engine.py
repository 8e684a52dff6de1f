"""The engine that writes texts: the unfolded checkpoint for the CPU, with linears and cache in float32."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.pipeline.workspace.sources import hash_sources
from kvfold.pipeline.workspace.write_bundle import sync
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.version import VERSION
from kvfold.runtime.engine.engine_config import EngineConfig
from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.onnxruntime_engine import OnnxRuntimeEngine

if TYPE_CHECKING:
    from kvfold.export.checkpoint.checkpoint import Checkpoint

ENGINE_FOLDER = "engine"


def unfolded_plan(checkpoint: Checkpoint) -> FoldPlan:
    """Nothing folded, the cache in float32."""
    return FoldPlan.of(checkpoint.config.attention_shape)


def writer_key(checkpoint: Checkpoint) -> str:
    """Names all that decides what the checkpoint writes: its files, and kvfold's code."""
    parts = (VERSION, hash_sources(("kvfold.pipeline.texts.writer",)), checkpoint.fingerprint)
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def load_writer_engine(
    checkpoint: Checkpoint, plan: FoldPlan, folder: Path, kv_cache_bytes: int
) -> OnnxRuntimeEngine:
    """The engine in `folder`, made where it is not there: as large as the model in float32.

    Args:
        checkpoint: the unfolded model.
        plan: its `unfolded_plan`.
        folder: the writer's, of this checkpoint and this code; a kill leaves a whole engine in it, or none.
        kv_cache_bytes: memory that its KV pools together may hold.

    Raises:
        ExportError: the model's graph is not what it must be.
        BundleError, KernelError: the engine cannot be loaded on this machine.
    """
    directory = folder / ENGINE_FOLDER
    if not directory.exists():
        aside = directory.with_suffix(".aside")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        _build(checkpoint, plan, aside)
        for path in (*aside.iterdir(), aside):
            sync(path)
        aside.replace(directory)
    return OnnxRuntimeEngine.load(EngineFiles.read(directory, plan), kv_cache_bytes)


def _build(checkpoint: Checkpoint, plan: FoldPlan, directory: Path) -> None:
    """Write model.onnx, its data and engine.json into an existing folder. Heavy imports happen inside."""
    from kvfold.export.graph.graph_weights import load_graph
    from kvfold.export.graph.lower_cpu import lower_for_cpu
    from kvfold.export.graph.onnx_from_decoder import export_graph

    graph = export_graph(checkpoint.config, plan, {}, directory / "neutral.onnx")
    model = load_graph(graph, plan, checkpoint.weights)
    passes = lower_for_cpu(model, directory, plan, precision={})
    graph.unlink()
    EngineConfig(
        target="cpu",
        backend="cpu",
        vocab_size=checkpoint.config.vocab_size,
        max_context_length=checkpoint.config.max_position_embeddings,
        fingerprint=writer_key(checkpoint),
        passes=passes,
    ).save(directory)
