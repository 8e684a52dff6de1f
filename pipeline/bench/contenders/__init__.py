"""The engines under test, a module each, all alike: TITLE, WEIGHTS, PACKAGE, INSTALL, prepare and load.

Importing a module imports no engine: that happens in `prepare` and `load`, inside a worker process.

To add one: its module; its name in `PEERS`, `PEERS_IN_4_BITS` or `PEERS_ON_CUDA`; the help of
`commands/measure/bench.py`; its package in `pyproject.toml` (mypy) and in
`test_contender_modules_import_no_engine`.
"""

from __future__ import annotations

from importlib import import_module
from typing import cast

from kvfold.pipeline.bench.contenders.contender import ContenderModule

KVFOLD = "kvfold"
PEERS = ("llama_cpp", "onnxruntime_genai", "openvino_genai", "transformers")
# The same in 4 bits, where the checkpoint's own GGUF file is.
PEERS_IN_4_BITS = (
    "llama_cpp_gguf",
    "llama_cpp_q4_0",
    "llama_cpp_q4_k_m",
    "onnxruntime_genai_int4",
    "openvino_genai_int4",
)


# In float16 on a GPU, modules of `contenders.cuda`.
PEERS_ON_CUDA = ("llama_cpp_cuda", "transformers_cuda", "vllm_cuda")


def contender_module(name: str) -> ContenderModule:
    """The module of kvfold or of a peer."""
    path = f"cuda.{name}" if name in PEERS_ON_CUDA else name
    return cast(ContenderModule, import_module(f"kvfold.pipeline.bench.contenders.{path}"))
