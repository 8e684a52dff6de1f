"""The facts of an engine that every target has in common."""

from __future__ import annotations

from collections.abc import Mapping

from kvfold.pipeline.workspace.workspace import Workspace
from kvfold.runtime.bundle import hash_file
from kvfold.runtime.engine.engine_config import SOURCES, Backend, EngineConfig, TensorRTFacts, fingerprint_of


def engine_config(
    workspace: Workspace, backend: Backend, passes: Mapping[str, int], tensorrt: TensorRTFacts | None = None
) -> EngineConfig:
    """Facts of an engine built from the workspace's bundle for its recipe's target.

    Args:
        workspace: its stages up to `graph` are done.
        backend: of that target.
        passes: how often each graph pass matched.
        tensorrt: what a TensorRT plan was built with.
    """
    return EngineConfig(
        target=workspace.recipe.target,
        backend=backend,
        vocab_size=workspace.config.vocab_size,
        max_context_length=workspace.config.max_position_embeddings,
        fingerprint=fingerprint_of(hash_file(workspace.root / name) for name in SOURCES),
        passes=dict(passes),
        tensorrt=tensorrt,
    )
