"""kvfold: fold the KV cache of a pretrained LLM, and run the result.

This is what a user imports: `from kvfold import LLM, SamplingParams, Session`. A name is looked up on its
first use, so that importing one part loads no other. The parts, `kvfold.runtime`, `kvfold.export`,
`kvfold.plugins` and `kvfold.pipeline`, are the folders at the top of the repository, linked here.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvfold.runtime.llm.async_llm import AsyncLLM
    from kvfold.runtime.llm.generation import Completion, TextChunk
    from kvfold.runtime.llm.llm import LLM
    from kvfold.runtime.llm.session import Session
    from kvfold.runtime.runtime_config import RuntimeConfig
    from kvfold.runtime.sampling.params import SamplingParams

__all__ = ["LLM", "AsyncLLM", "Completion", "RuntimeConfig", "SamplingParams", "Session", "TextChunk"]

# ONNX Runtime's wheels for Linux and macOS report to their maker since 1.29. They decide it when the library
# loads; a value that a user has set stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "AsyncLLM": "kvfold.runtime.llm.async_llm",
    "LLM": "kvfold.runtime.llm.llm",
    "Completion": "kvfold.runtime.llm.generation",
    "RuntimeConfig": "kvfold.runtime.runtime_config",
    "SamplingParams": "kvfold.runtime.sampling.params",
    "Session": "kvfold.runtime.llm.session",
    "TextChunk": "kvfold.runtime.llm.generation",
}


def __getattr__(name: str) -> object:
    """The public name, from the module it lives in."""
    if name not in _HOMES:
        raise AttributeError(f"module 'kvfold' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
