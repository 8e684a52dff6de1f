"""Engines of the tiny recipe, closed after use, and the same in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.bundle import FOLD_PLAN
from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.tensorrt.tensorrt_engine import TensorRTEngine
from tests.gpu.read_texts import NUM_PAGES
from tests.gpu.tiny_bundle import TinyBundle
from tests.paging import budget_of
from tests.root import ROOT


@contextmanager
def tensorrt_engine(directory: Path, plan: FoldPlan) -> Iterator[TensorRTEngine]:
    """A TensorRT engine with pages for `read_texts`."""
    files = EngineFiles.read(directory, plan)
    engine = TensorRTEngine.load(files, budget_of(files, NUM_PAGES))
    try:
        yield engine
    finally:
        engine.close()


def read_in_new_process(tiny: TinyBundle, directory: Path, folder: Path) -> np.ndarray:
    """Logits of the texts by an engine in a process that loads neither torch nor Triton.

    Args:
        tiny: bundle of the engine.
        directory: of the engine.
        folder: an existing folder for the arrays.
    """
    np.save(folder / "texts.npy", tiny.texts)
    paths = [directory, tiny.root / FOLD_PLAN, folder / "texts.npy", folder / "logits.npy"]
    command = [sys.executable, "-m", "tests.gpu.run_engine", *map(str, paths)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    logits: np.ndarray = np.load(folder / "logits.npy")
    return logits
