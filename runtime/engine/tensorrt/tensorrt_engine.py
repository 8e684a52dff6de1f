"""TensorRTEngine: a plan of `tensorrt` or `tensorrt_rtx` behind the Engine protocol."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from weakref import finalize

import numpy as np

from kvfold.plugins.cuda.kernel_library import KernelLibrary
from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.engine_config import PLAN_FILE, TensorRTFacts
from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.host_engine import HostEngine
from kvfold.runtime.engine.protocol import EngineInfo, PageStore, StepInputs
from kvfold.runtime.engine.tensorrt.gpu_memory import StepSizes, check_memory, check_pages
from kvfold.runtime.engine.tensorrt.loaded_plan import LoadedPlan
from kvfold.runtime.engine.tensorrt.preflight import check_files, check_gpu, import_library
from kvfold.runtime.engine.tensorrt.runner import StepRunner


class TensorRTEngine(HostEngine):
    """Executes steps on one NVIDIA GPU. Not thread-safe: one step at a time, from any thread.

    The GPU's memory is given back by `close`, or when the engine and the last logits it returned are gone.
    """

    def __init__(self, runner: StepRunner, info: EngineInfo, logits: np.ndarray) -> None:
        """Over a runner that nobody else uses.

        Args:
            runner: closed with the engine.
            info: what the scheduler must know.
            logits: pinned bytes for float32 [most rows, vocab_size]; the runner's device frees them.
        """
        super().__init__(info)
        self._runner = runner
        self._logits = logits.view(np.float32).reshape(-1, info.vocab_size)
        # All logits returned are views of these bytes: as long as one is alive, so is what it looks at.
        self._close = finalize(logits, runner.close)

    @classmethod
    def load(cls, files: EngineFiles, kv_cache_bytes: int) -> TensorRTEngine:
        """Load `engine/tensorrt` or `engine/tensorrt-rtx` of a bundle onto the first visible GPU.

        Args:
            files: of the engine.
            kv_cache_bytes: memory that its KV pools together may hold.

        Raises:
            TargetError: this machine cannot run the plan; the message says what to rebuild or install.
            KernelError: the attention kernels are damaged, or the plugin refused the plan.
            CapacityError: weights, workspace, KV cache and buffers do not fit into the GPU's memory.
        """
        facts, kernels = check_files(files)
        trt = import_library(files.config, facts)
        info = files.info(kv_cache_bytes)
        device = Device.open()
        try:
            check_gpu(files.config, facts, device)
            return cls._assemble(device, trt, files.directory, kernels, facts, info)
        except BaseException:
            device.close()
            raise

    @classmethod
    def _assemble(
        cls,
        device: Device,
        trt: ModuleType,
        directory: Path,
        kernels: KernelLibrary,
        facts: TensorRTFacts,
        info: EngineInfo,
    ) -> TensorRTEngine:
        """Count the memory before the plan takes its weights, and again when it has told its workspace."""
        check_pages(info.num_pages, facts.max_pages)
        sizes = StepSizes.of(facts, info.plan, info.vocab_size)
        free, weights = device.free_bytes(), (directory / PLAN_FILE).stat().st_size
        parts = {
            "weights": weights,
            "KV pools": info.kv_cache_bytes,
            "step inputs": sizes.inputs,
            "logits": sizes.logits,
        }
        check_memory(parts, free)
        loaded = LoadedPlan(trt, directory, kernels, device.architecture)
        weights = max(weights, free - device.free_bytes())
        check_memory(parts | {"weights": weights, "workspace": loaded.workspace_bytes}, free)
        runner = StepRunner(device, loaded, facts, info, sizes)
        return cls(runner, info, device.allocate_pinned(sizes.logits))

    @property
    def pages(self) -> PageStore:
        """The bytes of its pools."""
        return self._runner.pages

    def execute(self, step: StepInputs) -> np.ndarray:
        """Run one step; the returned logits [R, vocab_size] are overwritten by the next one.

        Raises:
            TargetError: the step is outside of the plan's limits, or TensorRT or the driver failed.
        """
        logits = self._logits[: len(step.logits_indices)]
        self._runner.run(step, logits)
        return logits

    def close(self) -> None:
        """Give the GPU's memory back; logits returned so far are gone with it."""
        self._close()
