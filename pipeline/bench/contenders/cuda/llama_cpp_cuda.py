"""llama.cpp on a GPU: all layers there, Q8_0 weights, by its CUDA build."""

from __future__ import annotations

from pathlib import Path

from kvfold.pipeline.bench.contenders import llama_cpp
from kvfold.pipeline.bench.contenders.contender import Limits

TITLE = "llama.cpp"
WEIGHTS = "Q8_0"
PACKAGE = "llama-cpp-python"
INSTALL = (
    "pip install --no-binary llama-cpp-python llama-cpp-python gguf safetensors"
    "  # with CMAKE_ARGS=-DGGML_CUDA=on"
)
EVERY_LAYER = 1 << 16

prepare = llama_cpp.prepare


def load(model: Path, limits: Limits) -> llama_cpp.LlamaCppContender:
    """Load as on the CPU, with every layer on the GPU.

    Raises:
        RuntimeError: this build has no GPU.
    """
    from llama_cpp import llama_supports_gpu_offload

    if not llama_supports_gpu_offload():
        raise RuntimeError(f"this llama-cpp-python has no GPU support; python -m {INSTALL}")
    return llama_cpp.LlamaCppContender(model / llama_cpp.MODEL, limits, EVERY_LAYER)
