"""Reads texts with an engine, as a machine does that only runs engines: no torch, no Triton, no ONNX.

`python -m tests.gpu.run_engine ENGINE FOLD_PLAN TEXTS LOGITS`: arrays as .npy.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.bundle import read_record
from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.load_engine import load_engine
from tests.gpu.read_texts import ALONE, NUM_PAGES, read_texts
from tests.paging import budget_of


def main(engine: str, fold_plan: str, texts: str, logits: str) -> None:
    """Read the texts and save their logits."""
    plan = read_record(Path(fold_plan), FoldPlan)
    files = EngineFiles.read(Path(engine), plan)
    loaded = load_engine(files, budget_of(files, NUM_PAGES), max_num_batched_tokens=ALONE, max_num_seqs=4)
    np.save(logits, read_texts(loaded, plan, np.load(texts)))
    heavy = {"torch", "triton", "onnx"} & set(sys.modules)
    if heavy:
        raise SystemExit(f"an engine loaded {', '.join(sorted(heavy))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
