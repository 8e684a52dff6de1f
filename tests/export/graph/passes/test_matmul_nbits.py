"""Linears in 4 bits as MatMulNBits: the lowered graph's nodes, run by ONNX Runtime, hold the blocks' values.

On the CPU provider, which has the op too; no GPU has run them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from kvfold.export.graph.lower_cuda import lower_for_cuda
from kvfold.export.graph.passes.matmul_nbits import offsets
from kvfold.export.model.decoder import Decoder
from kvfold.export.quantize.int4.stored_blocks import StoredBlocks
from kvfold.plugins.contract.plan_presets import Preset, build_plan
from kvfold.plugins.cuda.attention_spec import ActivationDtype
from kvfold.plugins.int4_linear.packing import BlockWeight, dequantize_weight
from tests.export.graph.tiny_graphs import graph_of
from tests.export.quantize.int4.test_int4_calibration import in_blocks, run
from tests.export.quantize.test_quantize import model

HALF_ULP = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
MAX_ERROR = 4 * HALF_ULP["float16"]


def lowered(
    dtype: ActivationDtype, symmetric: bool, directory: Path
) -> tuple[onnx.ModelProto, dict[str, BlockWeight]]:
    """A biased decoder's graph for cuda, its projections in blocks of their own; and those blocks."""
    config, weights = model("llama-biased", head_dim=64)
    calibrated = run(config, in_blocks(weights, symmetric=symmetric))
    preset = Preset.model_validate({"preset": "identity", "kv_dtype": "int8"})
    plan = build_plan(preset, config.attention_shape)
    decoder = Decoder.from_weights(config, plan, calibrated.weights)
    stored = StoredBlocks(calibrated.precision, calibrated.blocks)
    (directory / "cuda").mkdir()
    graph = graph_of(decoder, calibrated.scales, directory)
    floats = {name: decoder.get_parameter(f"{name}.weight").detach() for name in stored.quantization.linears}
    counts = lower_for_cuda(graph, directory / "cuda", plan, dtype, stored)
    assert counts["matmul_nbits"] == len(floats)
    return onnx.load(directory / "cuda" / "model.onnx"), {
        name: stored.of(name, weight).to_numpy() for name, weight in floats.items()
    }


def linear_alone(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The nodes of one linear, from x to y, as a model."""
    graph, values = model.graph, constants(model)
    nodes = [node for node in graph.node if node.name.startswith(f"{name}.")]
    made = {output for node in nodes for output in node.output}
    (x,) = {value for node in nodes for value in node.input if value} - made - values.keys()
    ends = [
        onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT16, ["tokens", None])
        for value in (x, nodes[-1].output[0])
    ]
    data = [tensor for tensor in graph.initializer if any(tensor.name in node.input for node in nodes)]
    alone = onnx.helper.make_graph(nodes, name, ends[:1], ends[1:], data)
    return onnx.helper.make_model(alone, opset_imports=model.opset_import, ir_version=model.ir_version)


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def error(alone: onnx.ModelProto, block: BlockWeight, provider: str, at_once: int | None = None) -> float:
    """Of the weight that a float16 linear computes with, as a share of its largest number."""
    session = ort.InferenceSession(alone.SerializeToString(), providers=[provider])
    inputs = block.codes.shape[1]
    x = np.concatenate([np.zeros((1, inputs)), np.eye(inputs)]).astype(np.float16)
    step = at_once or len(x)
    parts = [x[start : start + step] for start in range(0, len(x), step)]
    y = [session.run(None, {session.get_inputs()[0].name: part})[0] for part in parts]
    bias, *rows = np.concatenate(y).astype(np.float32)
    exact, found = dequantize_weight(block), np.stack(rows).T - bias[:, None]
    largest = np.abs(exact).max() + np.abs(bias).max()
    return float(np.abs(found - exact).max() / largest)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_runtime_finds_the_blocks_values(symmetric: bool, tmp_path: Path) -> None:
    """Rounded to float16 once in a block's part of its own, and once in its offset."""
    graph, blocks = lowered("float16", symmetric, tmp_path)
    for name, block in blocks.items():
        assert error(linear_alone(graph, name), block, "CPUExecutionProvider") < MAX_ERROR


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_codes_stay_and_scales_and_offsets_are_rounded_once(
    dtype: ActivationDtype, symmetric: bool, tmp_path: Path
) -> None:
    graph, blocks = lowered(dtype, symmetric, tmp_path)
    stored = constants(graph)
    for name, block in blocks.items():
        packed = stored[f"{name}.weight_nbits"]
        codes = np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)
        assert np.array_equal(codes[:, : block.codes.shape[1]], block.codes)
        scale = stored[f"{name}.weight_scale"].astype(np.float32)
        np.testing.assert_allclose(scale, block.scale, rtol=0 if dtype == "float16" else HALF_ULP[dtype])
        assert (f"{name}.weight_offset" in stored) == (block.minimum is not None)
        if block.minimum is not None:
            rounded = stored[f"{name}.weight_offset"].astype(np.float32)
            np.testing.assert_allclose(rounded, offsets(block), rtol=HALF_ULP[dtype], atol=1e-7)
