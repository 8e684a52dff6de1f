"""An engine of the cuda target on a stand-in GPU: its stream has ONNX Runtime's CPU provider compute."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from kvfold.plugins.contract import step as contract
from kvfold.plugins.contract.fold_plan import FoldPlan, LayerPlan
from kvfold.plugins.cuda.kernel_library import KernelLibrary
from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.cuda.gpu_engine import GpuEngine
from kvfold.runtime.engine.engine_config import KERNELS_FOLDER, EngineConfig
from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.onnxruntime_cuda import (
    assemble,
)
from kvfold.runtime.engine.onnxruntime_engine import Provider
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.runtime_config import RuntimeConfig
from tests.runtime.byte_tokenizer import VOCAB, ByteTokenizer
from tests.runtime.engine import sampling_stand_in
from tests.runtime.engine.tensorrt.cuda_stand_in import StandInDriver

PLAN = FoldPlan(
    num_attention_heads=1,
    head_dim=2,
    layers=(LayerPlan(donor=0, num_key_value_heads=1, kv_dtype="float16"),),
)
SEQUENCES, TOKENS = 4, 48
CONFIG = EngineConfig(target="cuda", backend="cuda", vocab_size=VOCAB, max_context_length=512, fingerprint="")
SHAPES: dict[str, tuple[int, list[str | int]]] = {
    contract.INPUT_IDS: (TensorProto.INT64, ["tokens"]),
    contract.CUMULATIVE_SEQUENCE_LENGTH: (TensorProto.INT32, ["batch_and_one"]),
    contract.PAST_SEQLENS: (TensorProto.INT32, ["batch"]),
    contract.LOGITS_INDICES: (TensorProto.INT64, ["rows"]),
    contract.block_table("global"): (TensorProto.INT32, ["batch", "width"]),
    contract.slot_mapping("global"): (TensorProto.INT32, ["tokens"]),
}


def following_model() -> onnx.ModelProto:
    """The likeliest token is the next id, the others fall off around it; caches stay as they are."""
    ids = np.arange(VOCAB, dtype=np.float32)
    constants = [
        helper.make_tensor("ids", TensorProto.FLOAT, [VOCAB], ids),
        helper.make_tensor("slope", TensorProto.FLOAT, [], [-0.5]),
        helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
        helper.make_tensor("last", TensorProto.INT64, [1], [-1]),
    ]
    nodes = [
        helper.make_node("Gather", [contract.INPUT_IDS, contract.LOGITS_INDICES], ["said"]),
        helper.make_node("Cast", ["said"], ["id"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["id", "one"], ["next"]),
        helper.make_node("Unsqueeze", ["next", "last"], ["column"]),
        helper.make_node("Sub", ["column", "ids"], ["apart"]),
        helper.make_node("Abs", ["apart"], ["far"]),
        helper.make_node("Mul", ["far", "slope"], [contract.LOGITS]),
    ]
    caches = [(*contract.cache_inputs(0),), (*contract.cache_outputs(0),)]
    nodes += [helper.make_node("Identity", [into], [out]) for into, out in zip(*caches, strict=True)]
    pages: list[str | int] = ["pages", 16, 1, 2]
    inputs = [helper.make_tensor_value_info(name, *shape) for name, shape in SHAPES.items()]
    inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT16, pages) for name in caches[0]]
    outputs = [helper.make_tensor_value_info(contract.LOGITS, TensorProto.FLOAT, ["rows", VOCAB])]
    outputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT16, pages) for name in caches[1]]
    graph = helper.make_graph(nodes, "following", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


class RecordedBinding:
    """What is bound at the moment of a run counts, although the stand-in's stream computes it later."""

    def __init__(self) -> None:
        self._bound: dict[tuple[str, str], tuple[Any, ...]] = {}

    def bind_input(self, name: str, *given: Any) -> None:
        self._bound["bind_input", name] = given

    def bind_output(self, name: str, *given: Any) -> None:
        self._bound["bind_output", name] = given

    def write_to(self, binding: Any) -> Any:
        for (method, name), given in self._bound.items():
            getattr(binding, method)(name, *given)
        return binding


class StreamedSession:
    """A session that works on the stand-in's stream."""

    def __init__(self, driver: StandInDriver) -> None:
        self._driver = driver
        model = following_model().SerializeToString()
        self._session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.refuses_capture = False
        self.fails: str | None = None

    def io_binding(self) -> RecordedBinding:
        return RecordedBinding()

    def run_with_iobinding(self, binding: RecordedBinding, options: ort.RunOptions) -> None:
        key = "disable_synchronize_execution_providers"
        assert options.get_run_config_entry(key) == "1", "it would wait for the stream"
        if self._driver.capturing is not None and self.refuses_capture:
            raise RuntimeError("operation not permitted when stream is capturing")
        if self.fails is not None:
            raise RuntimeError(self.fails)
        bound = binding.write_to(self._session.io_binding())
        self._driver.enqueue(partial(self._session.run_with_iobinding, bound))


class Gpu:
    """A stand-in GPU with an engine on it."""

    def __init__(self, directory: Path, samples: bool = True, driver: StandInDriver | None = None) -> None:
        self.driver = driver or StandInDriver()
        if samples:
            sampling_stand_in.write_sampling_kernels(directory / KERNELS_FOLDER)
            sampling_stand_in.install(self.driver, directory / KERNELS_FOLDER)
        else:
            (directory / KERNELS_FOLDER).mkdir()
            KernelLibrary(triton="0", kernels=()).save(directory / KERNELS_FOLDER)
        files = EngineFiles(directory, CONFIG, PLAN)
        self.session = StreamedSession(self.driver)
        device, info = Device(self.driver), files.info(4 << 20)
        provider = Provider("StandIn", "cpu")
        self.engine: GpuEngine = assemble(self.session, device, files, info, TOKENS, SEQUENCES, provider)

    def llm(self) -> LLM:
        config = RuntimeConfig(max_num_batched_tokens=TOKENS, max_num_seqs=SEQUENCES)
        return LLM(self.engine, ByteTokenizer(()), config)
