"""An engine of target cuda on the host: its graph by ONNX Runtime's CPU provider, attention on `host_gpu`.

Nodes that the CPU provider has in float32 alone are computed so, between casts: activations are float16.
"""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import numpy as np
import onnxruntime

from kvfold.export.graph.attention import find_attention
from kvfold.export.graph.model_files import load_model, save_graph
from kvfold.export.graph.passes.cuda_attention import name_kernels
from kvfold.pipeline.build.cuda_kernels import spec_of
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.step import MODEL_FILE
from kvfold.plugins.cuda.kernel_library import OPENED_FILE
from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.onnxruntime_engine import OnnxRuntimeEngine
from tests.gpu.read_texts import NUM_PAGES, read_texts
from tests.paging import budget_of
from tests.plugins.cuda.interpreter import Tiles
from tests.plugins.cuda.onnxruntime.host_gpu import host_gpu
from tests.plugins.cuda.onnxruntime.onnxruntime_op import Libraries


def read_on_host(
    libraries: Libraries, engine: Path, plan: FoldPlan, texts: np.ndarray, folder: Path
) -> np.ndarray:
    """Logits [N, L, vocab_size] of texts [N, L], in steps of every kind. In the interpreter's process.

    Args:
        libraries: of this process, always the same.
        engine: the engine's folder.
        plan: of its bundle.
        texts: N >= 2.
        folder: an empty one, for the engine with the interpreter's kernels.
    """
    shutil.copytree(engine, folder, dirs_exist_ok=True)
    model, gpu = load_model(folder / MODEL_FILE), host_gpu(libraries.driver)
    specs = [spec_of(node, plan, "float16") for node in find_attention(model)]
    name_kernels(model, gpu.kernels(specs, Tiles(rows=32, keys=64), folder).sha256)
    save_graph(model, folder / MODEL_FILE)
    functions = ctypes.CDLL(str(libraries.op))
    functions.kvfold_open_kernels.restype = ctypes.c_char_p
    assert functions.kvfold_open_kernels(str(folder / OPENED_FILE).encode()) is None
    options = onnxruntime.SessionOptions()
    options.enable_mem_pattern = False
    options.log_severity_level = 4
    options.register_custom_ops_library(str(libraries.op))
    session = onnxruntime.InferenceSession(
        str(folder / MODEL_FILE), options, providers=["CPUExecutionProvider"]
    )
    files = EngineFiles.read(folder, plan)
    loaded = OnnxRuntimeEngine(session, files.info(budget_of(files, NUM_PAGES)))
    logits = read_texts(loaded, plan, texts)
    if gpu.failure:
        raise gpu.failure
    return logits
