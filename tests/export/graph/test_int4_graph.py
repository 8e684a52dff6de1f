"""The lowered graph with linears in 4 bits, run by the engine, held against PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from kvfold.export.graph.lower_cpu import lower_for_cpu
from kvfold.export.model.decoder import Decoder
from kvfold.export.quantize.calibrate import Calibrated
from kvfold.export.quantize.int4.stored_blocks import StoredBlocks
from kvfold.export.quantize.quantize_settings import QuantizeSettings
from kvfold.plugins.int4_linear.schema import OP_TYPE
from kvfold.runtime.engine.engine_config import EngineConfig
from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.onnxruntime_engine import OnnxRuntimeEngine
from tests.export.graph.tiny_graphs import graph_of
from tests.export.quantize.fake_quantized import FakeQuantizedDecoder
from tests.export.quantize.int4.test_int4_calibration import INT4, in_blocks, run
from tests.export.quantize.test_quantize import HELD_OUT, make_plan, model
from tests.paging import Pager, budget_of
from tests.tiny_model import dense_logits

# All linears with 16-bit activations: no difference comes from a rounding that falls the other way.
FINE = INT4.model_copy(update={"max_relative_error": 1e-9})


def lowered(
    family: str, symmetric: bool, directory: Path, settings: QuantizeSettings = INT4, **changes: object
) -> tuple[Calibrated, Decoder]:
    """Calibrated and lowered: projections in their own blocks, a head that was rounded."""
    config, weights = model(family, **changes)
    calibrated = run(config, in_blocks(weights, symmetric=symmetric), settings)
    decoder = Decoder.from_weights(config, make_plan(config), calibrated.weights)
    graph = graph_of(decoder, calibrated.scales, directory)
    (directory / "cpu").mkdir()
    blocks = StoredBlocks(calibrated.precision, calibrated.blocks)
    counts = lower_for_cpu(graph, directory / "cpu", decoder.plan, calibrated.precision.precision, blocks)
    assert counts["int4_linears"] == len(calibrated.precision.linears) and counts["int8_linears"] == 0
    assert counts["swiglu_inputs"] == config.num_hidden_layers
    return calibrated, decoder


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("family", ["llama-biased", "qwen3"])
@torch.no_grad()
def test_the_engine_computes_what_pytorch_does(
    family: str, symmetric: bool, tied: bool, tmp_path: Path
) -> None:
    """Far closer to the rounded model than that is to the float one."""
    calibrated, decoder = lowered(family, symmetric, tmp_path, FINE, tie_word_embeddings=tied)
    facts = EngineConfig(
        target="cpu", backend="cpu", vocab_size=97, max_context_length=256, fingerprint="test"
    )
    files = EngineFiles(tmp_path / "cpu", facts, decoder.plan)
    engine = OnnxRuntimeEngine.load(files, budget_of(files, 16), threads=2)
    expected = FakeQuantizedDecoder(decoder.config, decoder.plan, calibrated)(HELD_OUT)
    unrounded = dense_logits(decoder, HELD_OUT)
    for tokens, rounded, plain in zip(HELD_OUT, expected, unrounded, strict=True):
        found = torch.from_numpy(engine.execute(Pager(decoder.plan, 16).step({0: tokens.tolist()})).copy())
        assert float((found - rounded).norm() / (plain - rounded).norm()) < 0.2


def test_no_float_weight_and_no_needless_minimum_travels(tmp_path: Path) -> None:
    lowered("llama", symmetric=True, directory=tmp_path, tie_word_embeddings=False)
    graph = onnx.load(str(tmp_path / "cpu" / "model.onnx"), load_external_data=False).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    floats = [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1]
    assert [tensor.name for tensor in floats if np.prod(tensor.dims) > 97 * 8] == [
        "cos_cache",
        "sin_cache",
    ]
    assert kinds["model.layers.0.self_attn.qkv_proj.weight_int4"] == onnx.TensorProto.UINT8
    assert [name for name in kinds if name.endswith("weight_minimum")] == ["lm_head.weight_minimum"]
    bits = {
        attribute.i
        for node in graph.node
        if node.op_type == OP_TYPE
        for attribute in node.attribute
        if attribute.name == "activation_bits"
    }
    assert bits == {8}
