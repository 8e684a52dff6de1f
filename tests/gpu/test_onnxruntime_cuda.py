"""ONNX Runtime's CUDA provider with its stock attention, on the tiny recipe without sink tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvfold.pipeline.machine.targets import TARGETS
from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.load_engine import load_engine
from tests.gpu.conftest import GpuFacts, RecordProperty, skip
from tests.gpu.distances import MAX_KL_OF_FLOAT16, MAX_KL_TO_CPU, check_logits
from tests.gpu.read_texts import ALONE, NUM_PAGES, read_texts
from tests.gpu.tiny_bundle import TinyBundle
from tests.paging import budget_of


@pytest.fixture
def cuda(gpu: GpuFacts, request: pytest.FixtureRequest) -> None:
    """Skips where the target does not run."""
    why_not = TARGETS["cuda"].why_not_run()
    if why_not is not None:
        skip(request, why_not)


def read(tiny: TinyBundle, target: str) -> np.ndarray:
    """Logits of the texts by an engine of ONNX Runtime."""
    files = EngineFiles.read(tiny.build(target), tiny.plan)
    engine = load_engine(files, budget_of(files, NUM_PAGES), max_num_batched_tokens=ALONE, max_num_seqs=4)
    return read_texts(engine, tiny.plan, tiny.texts)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("recipe", ["float16", "float16-head-sink"])
def test_float16_caches(tmp_path: Path, recipe: str, record_property: RecordProperty) -> None:
    """Caches updated in place, step after step, give the folded model's logits, within a KL bound."""
    tiny = TinyBundle(tmp_path, recipe)
    logits = read(tiny, "cuda")
    check_logits(record_property, "folded || cuda", tiny.folded_logits, logits, MAX_KL_OF_FLOAT16)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("recipe", ["int8", "int8-head-sink"])
def test_int8_caches(tmp_path: Path, recipe: str, record_property: RecordProperty) -> None:
    """Caches updated in place, step after step, give the cpu engine's logits, within a KL bound."""
    tiny = TinyBundle(tmp_path, recipe)
    logits = read(tiny, "cuda")
    check_logits(record_property, "cpu || cuda", read(tiny, "cpu"), logits, MAX_KL_TO_CPU)
