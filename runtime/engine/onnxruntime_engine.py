"""The ONNX Runtime engine, on the CPU or through CUDA; page pools on its device stay bound all its life.

On the CPU attention and int8 linears are kvfold's own kernels; on CUDA every op is ONNX Runtime's. The CUDA
path was not run where it was written: what a GPU must show is in `make gpu-check`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from weakref import finalize

import numpy as np
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

from kvfold.plugins.contract import step as contract
from kvfold.plugins.contract.errors import BundleError, TargetError
from kvfold.plugins.contract.fold_plan import KvDtype
from kvfold.plugins.cpu.cpu_library import register_ops
from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.cuda.device_pages import DevicePages
from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.host_engine import HostEngine
from kvfold.runtime.engine.host_pages import HostPages
from kvfold.runtime.engine.kv_pools import KvPool
from kvfold.runtime.engine.onnxruntime_graph import check_graph
from kvfold.runtime.engine.protocol import EngineInfo, PageStore, StepInputs

# ONNX's numbers of element types, as numpy has no bfloat16.
_ELEMENT_TYPES: dict[KvDtype, int] = {"float32": 1, "int8": 3, "float16": 10, "bfloat16": 16}


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
PROVIDERS = {"cpu": _CPU, "cuda": Provider("CUDAExecutionProvider", "cuda")}


class OnnxRuntimeEngine(HostEngine):
    """Executes steps on one device. Not thread-safe: one step at a time, as the caches are shared."""

    def __init__(self, session: ort.InferenceSession, info: EngineInfo, provider: Provider) -> None:
        super().__init__(info)
        self._session = session
        self._binding = session.io_binding()
        self._pages = HostPages(info) if provider == _CPU else self._open_gpu()
        _bind_pools(self._binding, self._pages.pools, provider)
        self._logits = np.empty((0, info.vocab_size), np.float32)

    @classmethod
    def load(cls, files: EngineFiles, kv_cache_bytes: int, threads: int = 0) -> OnnxRuntimeEngine:
        """Load a bundle's engine of the backend `cpu` or `cuda`.

        Args:
            files: of the engine.
            kv_cache_bytes: memory that its KV pools together may hold.
            threads: intra-op threads; 0 takes one for each physical core.

        Raises:
            BundleError: ONNX Runtime cannot read the graph, or it is none of this engine's plan.
            KernelError: the CPU kernel library is missing or refused.
            CapacityError: the system refused the addresses of the pools.
            TargetError: this machine's ONNX Runtime has no CUDA provider, or it does not start; or the GPU's
                driver is not there.
        """
        provider = PROVIDERS[files.config.backend]
        path, info = files.directory / contract.MODEL_FILE, files.info(kv_cache_bytes)
        session = _open_session(path, provider, threads)
        check_graph(path, session, info)
        return cls(session, info, provider)

    @property
    def pages(self) -> PageStore:
        """The bytes of its pools."""
        return self._pages

    def _open_gpu(self) -> DevicePages:
        """Pools in memory of the driver's, whose addresses ONNX Runtime takes as any other's."""
        device = Device.open()
        finalize(self, device.close)
        return DevicePages(device, self._info)

    def execute(self, step: StepInputs) -> np.ndarray:
        """Run one step; the returned logits [R, vocab_size] are overwritten by the next one.

        Raises:
            BundleError: ONNX Runtime refuses the step, as no engine does that is as kvfold built it.
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
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # ORT's binding raises several unrelated types
            raise BundleError(
                f"ONNX Runtime {ort.__version__} cannot run a step of this engine: {error}; if memory did "
                "not run out, the engine is damaged: build it again with `kvfold build`"
            ) from error
        return logits

    def _bind_logits(self, rows: int) -> np.ndarray:
        """Rows of a buffer that only grows: the number of rows changes from step to step."""
        if rows > len(self._logits):
            self._logits = np.empty((rows, self._info.vocab_size), np.float32)
        logits = self._logits[:rows]
        self._binding.bind_output(
            contract.LOGITS, _CPU.memory, 0, _ELEMENT_TYPES["float32"], logits.shape, logits.ctypes.data
        )
        return logits


def _open_session(path: Path, provider: Provider, threads: int) -> ort.InferenceSession:
    if provider.name not in ort.get_available_providers():
        raise TargetError(
            f"onnxruntime {ort.__version__} of this machine has no {provider.name}; run "
            "`pip uninstall onnxruntime` and `pip install 'kvfold[cuda]'`, which brings onnxruntime-gpu"
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # A pattern of memory is kept for each combination of shapes, and steps have ever new ones.
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    if provider == _CPU:
        register_ops(options)
    else:
        ort.preload_dlls()  # CUDA and cuDNN from NVIDIA's wheels, where the system has none
    try:
        # Operations on shapes have no CUDA kernel, so the CPU stands behind every provider.
        providers = dict.fromkeys((provider.name, _CPU.name))
        return ort.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # ORT's binding raises several unrelated types
        if isinstance(error, NoKernel) and provider != _CPU:
            # ONNX Runtime goes on without a provider that fails to start; attention then has no kernel.
            raise TargetError(
                f"{provider.name} of ONNX Runtime {ort.__version__} did not start: there is no kernel for "
                f"{path}: {error}; check the driver, CUDA and cuDNN with `kvfold doctor`"
            ) from error
        raise BundleError(
            f"ONNX Runtime {ort.__version__} cannot load {path}: {error}; build the engine again "
            "with `kvfold build`"
        ) from error


def _bind_pools(binding: ort.IOBinding, pools: Iterable[tuple[KvPool, int]], provider: Provider) -> None:
    """Bind each pool, at its address, as input and output: caches are updated in place."""
    for pool, address in pools:
        bound = (provider.memory, 0, _ELEMENT_TYPES[pool.dtype], pool.shape, address)
        binding.bind_input(pool.input, *bound)
        binding.bind_output(pool.output, *bound)
