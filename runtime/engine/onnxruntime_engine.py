"""The ONNX Runtime engine on the CPU, and sessions for either device. Pools stay bound all their life."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

from kvfold.plugins.contract import step as contract
from kvfold.plugins.contract.errors import BundleError, KernelError, TargetError
from kvfold.plugins.contract.fold_plan import KvDtype
from kvfold.plugins.cpu import cpu_library
from kvfold.plugins.cuda import cuda_library
from kvfold.runtime.engine.engine_config import KERNELS_FOLDER
from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.host_engine import HostEngine
from kvfold.runtime.engine.host_pages import HostPages
from kvfold.runtime.engine.kv_pools import KvPool
from kvfold.runtime.engine.onnxruntime_errors import device_error, words_of
from kvfold.runtime.engine.onnxruntime_graph import check_graph
from kvfold.runtime.engine.protocol import EngineInfo, PageStore, StepInputs

# ONNX's numbers of element types, as numpy has no bfloat16.
ELEMENT_TYPES: dict[KvDtype, int] = {"float32": 1, "int8": 3, "float16": 10, "bfloat16": 16}


@dataclass(frozen=True)
class Provider:
    """Where a backend's engine computes.

    Attributes:
        name: of ONNX Runtime's execution provider.
        memory: name of the memory that holds the page pools, as ONNX Runtime calls it.
    """

    name: str
    memory: str


_CPU = Provider("CPUExecutionProvider", "cpu")
_OUR_OP = "PagedAttention: "  # how an error begins that kvfold's attention raises while a session is made
PROVIDERS = {"cpu": _CPU, "cuda": Provider("CUDAExecutionProvider", "cuda")}


class OnnxRuntimeEngine(HostEngine):
    """Executes steps on one device. Not thread-safe: one step at a time, as the caches are shared."""

    def __init__(self, session: ort.InferenceSession, info: EngineInfo) -> None:
        """Over a session on the CPU that nobody else uses."""
        super().__init__(info)
        self._session = session
        self._binding = session.io_binding()
        self._pages = HostPages(info)
        bind_pools(self._binding, self._pages.pools, _CPU)
        self._logits = np.empty((0, info.vocab_size), np.float32)

    @classmethod
    def load(cls, files: EngineFiles, kv_cache_bytes: int, threads: int = 0) -> OnnxRuntimeEngine:
        """Load a bundle's engine of the backend `cpu`.

        Args:
            files: of the engine.
            kv_cache_bytes: memory that its KV pools together may hold.
            threads: intra-op threads; 0 takes one for each physical core.

        Raises:
            BundleError: ONNX Runtime cannot read the graph, or it is none of this engine's plan.
            KernelError: a kernel library or an engine's kernels are missing or refused, or not for this GPU.
            CapacityError: the system refused the addresses of the pools, or has no memory left.
        """
        path, info = files.directory / contract.MODEL_FILE, files.info(kv_cache_bytes)
        session = open_session(path, _CPU, threads)
        check_graph(path, session, info)
        return cls(session, info)

    @property
    def pages(self) -> PageStore:
        """The bytes of its pools."""
        return self._pages

    def execute(self, step: StepInputs) -> np.ndarray:
        """Run one step; the returned logits [R, vocab_size] are overwritten by the next one.

        Raises:
            KvfoldError: as `run_session`.
        """
        feeds = {
            contract.INPUT_IDS: step.input_ids,
            contract.CUMULATIVE_SEQUENCE_LENGTH: step.cumulative_sequence_length,
            contract.PAST_SEQLENS: step.past_seqlens,
            contract.LOGITS_INDICES: step.logits_indices,
        }
        for group, tables in step.tables.items():
            feeds[contract.block_table(group)] = tables.block_table
            feeds[contract.slot_mapping(group)] = tables.slot_mapping
        for name, array in feeds.items():
            self._binding.bind_cpu_input(name, np.ascontiguousarray(array))
        logits = self._bind_logits(len(step.logits_indices))
        run_session(self._session, self._binding, _CPU)
        return logits

    def _bind_logits(self, rows: int) -> np.ndarray:
        """Rows of a buffer that only grows: the number of rows changes from step to step."""
        if rows > len(self._logits):
            self._logits = np.empty((rows, self._info.vocab_size), np.float32)
        logits = self._logits[:rows]
        self._binding.bind_output(
            contract.LOGITS, _CPU.memory, 0, ELEMENT_TYPES["float32"], logits.shape, logits.ctypes.data
        )
        return logits


def run_session(
    session: ort.InferenceSession,
    binding: ort.IOBinding,
    provider: Provider,
    options: ort.RunOptions | None = None,
) -> None:
    """Run a step of what was bound.

    Raises:
        CapacityError: memory ran out.
        TargetError: the GPU or its driver failed.
        BundleError: ONNX Runtime refuses the step, as no engine does that is as kvfold built it.
    """
    try:
        session.run_with_iobinding(binding, options)
    except Exception as error:  # ORT's binding raises several unrelated types
        said = f"ONNX Runtime {ort.__version__} cannot run a step of this engine: {words_of(error)}"
        damaged = BundleError(f"{said}; the engine is damaged: build it again with `kvfold build`")
        raise device_error(said, on_gpu=provider != _CPU) or damaged from error


def check_provider(provider: Provider) -> None:
    """Refuse a provider that this machine's ONNX Runtime has not; raises TargetError."""
    if provider.name not in ort.get_available_providers():
        raise TargetError(
            f"onnxruntime {ort.__version__} of this machine has no {provider.name}; run "
            "`pip uninstall onnxruntime` and `pip install 'kvfold[cuda]'`, which brings onnxruntime-gpu"
        )


def open_session(path: Path, provider: Provider, threads: int = 0, stream: int = 0) -> ort.InferenceSession:
    """A session over a graph, on the CPU with so many threads, or on a GPU's stream; raises as `load`."""
    check_provider(provider)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # A pattern of memory is kept for each combination of shapes, and steps have ever new ones.
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    if provider == _CPU:
        cpu_library.register_ops(options)
    else:
        ort.preload_dlls()  # CUDA and cuDNN from NVIDIA's wheels, where the system has none
        cuda_library.register_ops(options)
        cuda_library.open_kernels(path.parent / KERNELS_FOLDER)
    try:
        # Operations on shapes have no CUDA kernel, so the CPU stands behind every provider.
        gpu = [(provider.name, {"user_compute_stream": str(stream)})] if stream else []
        # Without a fallback: it would try again on the CPU, and raise what it finds there.
        return ort.InferenceSession(str(path), options, providers=[*gpu, _CPU.name], enable_fallback=0)
    except Exception as error:  # ORT's binding raises several unrelated types
        said = f"ONNX Runtime {ort.__version__} cannot load {path}: {words_of(error)}"
        if failed := device_error(said, on_gpu=provider != _CPU):
            raise failed from error
        if isinstance(error, NoKernel) and provider != _CPU:
            # ONNX Runtime goes on without a provider that fails to start; attention then has no kernel.
            raise TargetError(
                f"{provider.name} of ONNX Runtime {ort.__version__} did not start: there is no kernel for "
                f"{path}: {words_of(error)}; check the driver, CUDA and cuDNN with `kvfold doctor`"
            ) from error
        if _OUR_OP in str(error) and provider != _CPU:
            raise KernelError(f"{path} cannot run on this GPU: {words_of(error)}") from error
        raise BundleError(f"{said}; build the engine again with `kvfold build`") from error


def bind_pools(binding: ort.IOBinding, pools: Iterable[tuple[KvPool, int]], provider: Provider) -> None:
    """Bind each pool, at its address, as input and output: caches are updated in place."""
    for pool, address in pools:
        bound = (provider.memory, 0, ELEMENT_TYPES[pool.dtype], pool.shape, address)
        binding.bind_input(pool.input, *bound)
        binding.bind_output(pool.output, *bound)
