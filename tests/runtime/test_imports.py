"""`runtime` needs numpy, onnxruntime and tokenizers: it imports without torch, onnx and transformers."""

from __future__ import annotations

import subprocess
import sys

from tests.root import ROOT

EVERY_MODULE = """
import sys, importlib, pkgutil
for name in ("torch", "onnx", "onnxscript", "transformers", "tensorrt", "safetensors", "gguf"):
    sys.modules[name] = None
from kvfold import runtime
for module in pkgutil.walk_packages(runtime.__path__, "kvfold.runtime."):
    importlib.import_module(module.name)
assert not any(name.startswith(("kvfold.export", "kvfold.pipeline")) for name in sys.modules)
"""

# CPU seconds: the wall clock of a busy machine measures its neighbours.
IMPORT_TIME = """
import time
start = time.process_time()
from kvfold import LLM, SamplingParams, Session
print(time.process_time() - start)
"""


def run(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_module_imports_in_a_bare_environment() -> None:
    run(EVERY_MODULE)


def test_importing_runtime_is_quick() -> None:
    assert min(float(run(IMPORT_TIME)) for _ in range(3)) < 0.5


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert "no attribute" in run("import kvfold\ntry: kvfold.Nothing\nexcept AttributeError as e: print(e)")
