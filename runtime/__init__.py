"""Drive a built engine from Python: KV memory, radix tree, scheduler, sampling, sessions.

Needs numpy, onnxruntime and tokenizers only; torch is never imported. `from runtime import LLM` is
resolved on first use, so that importing one part does not load the others.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.generation import Completion, TextChunk
    from runtime.llm import LLM
    from runtime.runtime_config import RuntimeConfig
    from runtime.sampling.sampling import SamplingParams
    from runtime.session import Session

__all__ = ["LLM", "Completion", "RuntimeConfig", "SamplingParams", "Session", "TextChunk"]

_HOMES = {
    "LLM": "runtime.llm",
    "Completion": "runtime.generation",
    "RuntimeConfig": "runtime.runtime_config",
    "SamplingParams": "runtime.sampling.sampling",
    "Session": "runtime.session",
    "TextChunk": "runtime.generation",
}


def __getattr__(name: str) -> object:
    """The public name, from the module it lives in."""
    if name not in _HOMES:
        raise AttributeError(f"module 'runtime' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
