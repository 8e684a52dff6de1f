"""ONNX Runtime on CUDA: kvfold's attention (caches, sinks, windows, sharing), 4 bits, the stock op."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from kvfold.pipeline.build.bound_graph import bound_graph
from kvfold.pipeline.machine.targets import TARGETS
from kvfold.runtime.engine.cuda.gpu_engine import DeviceDrawing
from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.load_engine import load_engine
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.sampling.params import SamplingParams
from tests.export.graph.passes.test_matmul_nbits import MAX_ERROR, error, linear_alone, lowered
from tests.export.graph.stock_graph import lower_with_stock_attention
from tests.gpu.conftest import RecordProperty, skip
from tests.gpu.distances import (
    MAX_KL_OF_BFLOAT16,
    MAX_KL_OF_FLOAT16,
    MAX_KL_OF_INT8_CACHE,
    check_logits,
)
from tests.gpu.read_texts import ALONE, NUM_PAGES, read_texts
from tests.gpu.runs.find_gpu import GpuFacts
from tests.gpu.tiny_bundle import SINKS, TinyBundle
from tests.paging import budget_of
from tests.runtime.byte_tokenizer import ByteTokenizer
from tests.runtime.engine.steady_step import STEADY, calls_of_a_step

PRESETS = pytest.mark.parametrize("preset", ["horizon", "character"])


@pytest.fixture
def cuda(gpu: GpuFacts, request: pytest.FixtureRequest) -> None:
    """Skips where the target does not run."""
    why_not = TARGETS["cuda"].why_not_build() or TARGETS["cuda"].why_not_run()
    if why_not is not None:
        skip(request, why_not)


def read(tiny: TinyBundle, directory: Path) -> np.ndarray:
    """Logits of the texts by an engine of ONNX Runtime."""
    files = EngineFiles.read(directory, tiny.plan)
    engine = load_engine(files, budget_of(files, NUM_PAGES), max_num_batched_tokens=ALONE, max_num_seqs=4)
    return read_texts(engine, tiny.plan, tiny.texts)


@pytest.mark.usefixtures("cuda")
@PRESETS
@pytest.mark.parametrize("sinks", SINKS)
def test_float16_caches(tmp_path: Path, preset: str, sinks: str, record_property: RecordProperty) -> None:
    """Caches updated in place, step after step, give the folded model's logits, within a KL bound."""
    tiny = TinyBundle(tmp_path, f"{preset}-{sinks}-float16")
    logits = read(tiny, tiny.build("cuda"))
    check_logits(record_property, "folded || cuda", tiny.folded_logits, logits, MAX_KL_OF_FLOAT16)


@pytest.mark.usefixtures("cuda")
@PRESETS
@pytest.mark.parametrize("sinks", SINKS)
def test_bfloat16_caches(
    tmp_path: Path, preset: str, sinks: str, gpu: GpuFacts, request: pytest.FixtureRequest,
    record_property: RecordProperty,
) -> None:  # fmt: skip
    """The same in bfloat16, from SM 80 on."""
    if gpu.architecture == 75:
        skip(request, "SM 75 has no bfloat16")
    tiny = TinyBundle(tmp_path, f"{preset}-{sinks}-bfloat16")
    logits = read(tiny, tiny.build("cuda"))
    check_logits(record_property, "folded || cuda", tiny.folded_logits, logits, MAX_KL_OF_BFLOAT16)


@pytest.mark.usefixtures("cuda")
@PRESETS
@pytest.mark.parametrize("sinks", SINKS)
def test_int8_caches(tmp_path: Path, preset: str, sinks: str, record_property: RecordProperty) -> None:
    """Caches updated in place, step after step, give the cpu engine's logits, within a KL bound."""
    tiny = TinyBundle(tmp_path, f"{preset}-{sinks}-int8")
    cpu, logits = read(tiny, tiny.build("cpu")), read(tiny, tiny.build("cuda"))
    check_logits(record_property, "cpu || cuda", cpu, logits, MAX_KL_OF_INT8_CACHE)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("sinks", ["head_sink", "nothing"])
@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
def test_the_stock_op_says_the_same(
    tmp_path: Path, sinks: str, kv_dtype: str, record_property: RecordProperty
) -> None:
    """ONNX Runtime's own PagedAttention over the same caches, where the plan has no sink tokens."""
    tiny = TinyBundle(tmp_path, f"character-{sinks}-{kv_dtype}")
    ours, stock = tiny.build("cuda"), tmp_path / "stock"
    shutil.copytree(ours, stock)
    lower_with_stock_attention(bound_graph(tiny.workspace), stock, tiny.plan, "float16")
    bound = MAX_KL_OF_FLOAT16 if kv_dtype == "float16" else MAX_KL_OF_INT8_CACHE
    check_logits(record_property, "stock || kvfold", read(tiny, stock), read(tiny, ours), bound)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
def test_decode_steps_are_graphs_and_tokens_are_drawn_on_the_gpu(
    tmp_path: Path, kv_dtype: str, monkeypatch: pytest.MonkeyPatch, record_property: RecordProperty
) -> None:
    """A steady step is one copy up, a captured graph, a sampling kernel and tokens down, and nothing else."""
    tiny = TinyBundle(tmp_path, f"character-sinks-{kv_dtype}")
    files = EngineFiles.read(tiny.build("cuda"), tiny.plan)
    config = RuntimeConfig(max_num_batched_tokens=ALONE, max_num_seqs=4)
    engine = load_engine(
        files, budget_of(files, NUM_PAGES), config.max_num_batched_tokens, config.max_num_seqs
    )
    called = calls_of_a_step(LLM(engine, ByteTokenizer(()), config), monkeypatch)
    record_property("driver's calls of a steady step", ", ".join(called))
    assert called == STEADY


@pytest.mark.usefixtures("cuda")
def test_tokens_are_the_same_where_each_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: RecordProperty
) -> None:
    """Steps begin behind those whose tokens are still being drawn, or when the tokens are known."""
    tiny = TinyBundle(tmp_path, "horizon-sinks-float16")
    files = EngineFiles.read(tiny.build("cuda"), tiny.plan)
    params = SamplingParams(max_tokens=40, temperature=0.8, seed=1)
    config = RuntimeConfig(max_num_batched_tokens=64, max_num_seqs=4)
    told, prompts = [], [text[:40].tolist() for text in tiny.texts]
    for feeds in (True, False):
        monkeypatch.setattr(DeviceDrawing, "feeds", feeds)
        engine = load_engine(files, budget_of(files, NUM_PAGES), max_num_batched_tokens=64, max_num_seqs=4)
        replies = LLM(engine, ByteTokenizer(()), config).generate(prompts, params)
        told.append([reply.token_ids for reply in replies])
    record_property("different tokens", int((np.array(told[0]) != np.array(told[1])).sum()))
    assert told[0] == told[1]


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("at_once", [1, None])
def test_linears_in_4_bits(
    tmp_path: Path, symmetric: bool, at_once: int | None, record_property: RecordProperty
) -> None:
    """MatMulNBits computes with the blocks' values, a token at a time and many."""
    graph, blocks = lowered("float16", symmetric, tmp_path)
    errors = [
        error(linear_alone(graph, name), block, "CUDAExecutionProvider", at_once)
        for name, block in blocks.items()
    ]
    record_property("largest error of a 4-bit weight", max(errors))
    assert max(errors) < MAX_ERROR
