"""Page pools of the ONNX Runtime engine in every type, and what it says where CUDA is not there.

The pools lie in CPU memory here; those of a GPU are in `test_onnxruntime_cuda_steps.py`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from kvfold.plugins.contract import step as contract
from kvfold.plugins.contract.errors import BundleError, TargetError
from kvfold.plugins.contract.fold_plan import FoldPlan, KvDtype, LayerPlan
from kvfold.plugins.cuda.kernel_library import KernelLibrary
from kvfold.plugins.paged_attention.schema import DOMAIN
from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.engine_config import KERNELS_FOLDER, EngineConfig
from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.load_engine import load_engine
from kvfold.runtime.engine.onnxruntime_engine import OnnxRuntimeEngine
from kvfold.runtime.engine.protocol import EngineInfo
from tests.paging import Pager
from tests.runtime.engine.cuda_engine_stand_in import SHAPES
from tests.runtime.engine.tensorrt.cuda_stand_in import StandInDriver

CACHE = (1, 16, 1, 2)
ELEMENTS: dict[KvDtype, int] = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int8": TensorProto.INT8,
}


def one_layer(kv_dtype: KvDtype) -> FoldPlan:
    layer = LayerPlan(donor=0, num_key_value_heads=1, kv_dtype=kv_dtype)
    return FoldPlan(num_attention_heads=1, head_dim=2, layers=(layer,))


def counting_model(kv_dtype: KvDtype, num_pages: int = 1) -> onnx.ModelProto:
    """Each step adds 1 to every key and the new key to every value; the logits are the old sums of both."""
    element, width = ELEMENTS[kv_dtype], num_pages * int(np.prod(CACHE))
    (key, value), (key_out, value_out) = contract.cache_inputs(0), contract.cache_outputs(0)
    constants = [
        helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
        helper.make_tensor("zero", TensorProto.INT64, [], [0]),
        helper.make_tensor("flat", TensorProto.INT64, [2], [1, width]),
    ]
    nodes = [
        helper.make_node("Cast", [key], ["keys"], to=TensorProto.FLOAT),
        helper.make_node("Cast", [value], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["keys", "one"], ["more_keys"]),
        helper.make_node("Add", ["values", "more_keys"], ["more_values"]),
        helper.make_node("Cast", ["more_keys"], [key_out], to=element),
        helper.make_node("Cast", ["more_values"], [value_out], to=element),
        helper.make_node("Add", ["keys", "values"], ["sums"]),
        helper.make_node("Reshape", ["sums", "flat"], ["row"]),
        helper.make_node("Mul", [contract.LOGITS_INDICES, "zero"], ["first"]),
        helper.make_node("Gather", ["row", "first"], [contract.LOGITS]),
    ]
    inputs = [helper.make_tensor_value_info(name, *shape) for name, shape in SHAPES.items()]
    pages: list[str | int] = ["pages", *CACHE[1:]]
    inputs += [helper.make_tensor_value_info(name, element, pages) for name in (key, value)]
    outputs = [helper.make_tensor_value_info(contract.LOGITS, TensorProto.FLOAT, ["rows", width])]
    outputs += [helper.make_tensor_value_info(name, element, pages) for name in (key_out, value_out)]
    graph = helper.make_graph(nodes, "counting", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


@pytest.mark.parametrize("kv_dtype", ELEMENTS)
def test_pools_start_at_zero_and_keep_what_a_step_wrote(kv_dtype: KvDtype) -> None:
    plan = one_layer(kv_dtype)
    model = counting_model(kv_dtype).SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    info = EngineInfo(plan, 256, {"global": 1}, {"global": 1}, 32, max_context_length=16, fingerprint="")
    engine, pager = OnnxRuntimeEngine(session, info), Pager(plan, 1)
    for expected in (0, 1 + 1, 2 + 3, 3 + 6):
        logits = engine.execute(pager.step({0: [7]}))
        np.testing.assert_array_equal(logits, np.full((1, 32), expected, np.float32))


@pytest.fixture
def counting(tmp_path: Path) -> Path:
    """The counting model as an engine's folder."""
    onnx.save(counting_model("float32"), tmp_path / contract.MODEL_FILE)
    facts = {"target": "cpu", "backend": "cpu", "vocab_size": 32, "max_context_length": 16, "fingerprint": ""}
    EngineConfig.model_validate(facts).save(tmp_path)
    return tmp_path


def load_counting(directory: Path, vocab_size: int = 32, **changes: object) -> OnnxRuntimeEngine:
    layer = {"donor": 0, "num_key_value_heads": 1}
    changed = {name: value for name, value in changes.items() if name in LayerPlan.model_fields}
    whole = {"num_attention_heads": 2, "head_dim": 2, "layers": [layer | changed]} | {
        name: value for name, value in changes.items() if name not in changed
    }
    files = EngineFiles.read(directory, FoldPlan.model_validate(whole))
    config = files.config.model_copy(update={"vocab_size": vocab_size})
    return OnnxRuntimeEngine.load(replace(files, config=config), 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vocab_size": 2**63},
            r"output logits: tensor\(float\) \[any, 32\], .* \[any, 9223372036854775808\]",
        ),
        ({"kv_dtype": "int8"}, r"input key_cache\.0: tensor\(float\) .* ask for tensor\(int8\)"),
        ({"page_size": 32}, r"input key_cache\.0: .* \[any, 16, 1, 2\], .* \[any, 32, 1, 2\]"),
        ({"num_key_value_heads": 2}, r"input key_cache\.0: .* \[any, 16, 1, 2\], .* \[any, 16, 2, 2\]"),
        ({"sliding_window": 8}, r"input block_table\.global: tensor\(int32\) .* ask for nothing"),
        (
            {"layers": [{"donor": i, "num_key_value_heads": 1} for i in (0, 1)]},
            r"input key_cache\.1: nothing",
        ),
    ],
)
def test_a_graph_of_another_plan_is_refused(counting: Path, changes: dict[str, Any], message: str) -> None:
    load_counting(counting)
    with pytest.raises(BundleError, match=message):
        load_counting(counting, **changes)


def test_a_step_that_the_runtime_refuses_is_a_typed_error(counting: Path) -> None:
    engine = load_counting(counting)  # a slab of several pages, where the model reshapes one
    with pytest.raises(BundleError, match=r"cannot run a step (?s:.*)Reshape(?s:.*) build it again"):
        engine.execute(Pager(engine.info.plan, 2).step({0: [7]}))


def cuda_engine(directory: Path) -> Path:
    """A folder as `kvfold build` leaves it, with the op that only CUDA has a kernel for."""
    names = ["query", "", "", "cache", "cache", "lengths", "past", "table"]
    node = helper.make_node(
        "PagedAttention", names, ["output"], "attention", domain=DOMAIN, num_heads=1, kv_num_heads=1
    )
    half, int32 = TensorProto.FLOAT16, TensorProto.INT32
    types: dict[str, tuple[int, list[str | int]]] = {
        "query": (half, ["t", 24]),
        "cache": (half, ["p", 16, 1, 8]),
        "lengths": (int32, ["c"]),
        "past": (int32, ["b"]),
        "table": (int32, ["b", "m"]),
    }
    inputs = [helper.make_tensor_value_info(name, *types[name]) for name in dict.fromkeys(names) if name]
    outputs = [helper.make_tensor_value_info("output", half, ["t", 8])]
    graph = helper.make_graph([node], "attention", inputs, outputs)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), directory / contract.MODEL_FILE)
    (directory / KERNELS_FOLDER).mkdir()
    KernelLibrary(triton="0", kernels=()).save(directory / KERNELS_FOLDER)
    EngineConfig(target="twin", backend="cuda", vocab_size=32, max_context_length=16, fingerprint="").save(
        directory
    )
    return directory


def load(directory: Path) -> None:
    load_engine(EngineFiles.read(directory, one_layer("float16")), 1, 8, 4)


def test_a_machine_without_the_cuda_provider_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(TargetError, match=r"no CUDAExecutionProvider; .*kvfold\[cuda\].*onnxruntime-gpu"):
        load(cuda_engine(tmp_path))


def test_target_cuda_without_a_driver_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(TargetError, match=r"no NVIDIA driver|pip install cuda-bindings"):
        load(cuda_engine(tmp_path))


@pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="would show it where CUDA does not start"
)
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_start_is_no_damaged_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: names)
    monkeypatch.setattr(Device, "open", lambda: Device(StandInDriver()))
    with pytest.raises(TargetError, match=r"CUDAExecutionProvider .* did not start: .*PagedAttention"):
        load(cuda_engine(tmp_path))
