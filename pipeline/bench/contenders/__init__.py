"""The engines under test, a module each, all alike: TITLE, WEIGHTS, PACKAGE, INSTALL, prepare and load.

Importing a module imports no engine: that happens in `prepare` and `load`, inside a worker process.

To add one: its module; its name in `PEERS`; the help of `commands/measure/bench.py`; its package in
`pyproject.toml` (mypy) and in `test_contender_modules_import_no_engine`.
"""

from __future__ import annotations

from importlib import import_module
from typing import cast

from kvfold.pipeline.bench.contenders.contender import ContenderModule

KVFOLD = "kvfold"
PEERS = ("llama_cpp", "onnxruntime_genai", "openvino_genai", "transformers")


def contender_module(name: str) -> ContenderModule:
    """The module of kvfold or of a peer."""
    return cast(ContenderModule, import_module(f"kvfold.pipeline.bench.contenders.{name}"))
