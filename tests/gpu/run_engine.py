"""Reads texts with an engine, as a machine does that only runs engines: no torch, no Triton, no ONNX.

`python -m tests.gpu.run_engine ENGINE FOLD_PLAN TEXTS LOGITS [LIBRARY]`: arrays as .npy; LIBRARY is the C++
plugin, used in place of the Python one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import numpy as np

from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.cuda.cuda_library import open_kernels
from kvfold.runtime.bundle import read_record
from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.load_engine import load_engine
from tests.gpu.read_texts import ALONE, NUM_PAGES, read_texts
from tests.paging import budget_of

LOAD_PLUGINS = "kvfold.runtime.engine.tensorrt.loaded_plan.load_plugins"


class CppPlugins:
    """The C++ library where an engine expects a `Host`; it logs its errors through TensorRT."""

    def __init__(self, trt: ModuleType, directory: Path, library: str) -> None:
        open_kernels(directory)
        if trt.get_plugin_registry().load_library(library) is None:
            raise SystemExit(f"{trt.__name__} did not load {library}")

    @contextmanager
    def surfacing_errors(self) -> Iterator[None]:
        yield


def main(engine: str, fold_plan: str, texts: str, logits: str, *library: str) -> None:
    """Read the texts and save their logits."""
    plan = read_record(Path(fold_plan), FoldPlan)
    files = EngineFiles.read(Path(engine), plan)
    plugins = (
        patch(LOAD_PLUGINS, lambda trt, kernels, directory, sm: CppPlugins(trt, directory, *library))
        if library
        else nullcontext()
    )
    with plugins:
        loaded = load_engine(files, budget_of(files, NUM_PAGES), max_num_batched_tokens=ALONE, max_num_seqs=4)
    np.save(logits, read_texts(loaded, plan, np.load(texts)))
    heavy = {"torch", "triton", "onnx"} & set(sys.modules)
    if heavy:
        raise SystemExit(f"an engine loaded {', '.join(sorted(heavy))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
