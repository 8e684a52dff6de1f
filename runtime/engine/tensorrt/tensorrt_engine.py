"""TensorRTEngine: a plan of `tensorrt` or `tensorrt_rtx` behind the Engine protocol."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from kvfold.runtime.engine.cuda.buckets import DecodeBuckets
from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.cuda.device_pages import DevicePages
from kvfold.runtime.engine.cuda.device_sampler import open_sampler
from kvfold.runtime.engine.cuda.gpu_engine import GpuEngine
from kvfold.runtime.engine.cuda.memory_check import StepSizes, check_memory
from kvfold.runtime.engine.cuda.staging import Staging
from kvfold.runtime.engine.cuda.step_runner import StepRunner
from kvfold.runtime.engine.engine_config import KERNELS_FOLDER, PLAN_FILE, TensorRTFacts
from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.protocol import EngineInfo
from kvfold.runtime.engine.tensorrt.gpu_memory import FixedMemory, check_pages
from kvfold.runtime.engine.tensorrt.loaded_plan import LoadedPlan
from kvfold.runtime.engine.tensorrt.plan_program import PlanProgram
from kvfold.runtime.engine.tensorrt.preflight import check_files, check_gpu, import_library

_ADVICE = (
    "build with a lower tensorrt.max_num_batched_tokens and tensorrt.max_num_seqs in the recipe (workspace, "
    "step inputs, logits and sampling shrink with them)"
)


class TensorRTEngine(GpuEngine):
    """A `GpuEngine` over a plan."""

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
        facts = check_files(files)
        trt = import_library(files.config, facts)
        info = files.info(kv_cache_bytes)
        with Device.open().loading() as device:
            check_gpu(files.config, facts, device)
            return cls._assemble(device, trt, files.directory, facts, info)

    @classmethod
    def _assemble(
        cls,
        device: Device,
        trt: ModuleType,
        directory: Path,
        facts: TensorRTFacts,
        info: EngineInfo,
    ) -> TensorRTEngine:
        """Count the memory before the plan takes its weights, and again when it has told its workspace."""
        check_pages(info.num_pages, facts.max_pages)
        rows = max(facts.decode.max_logits, facts.prefill.max_logits)
        sampled = min(facts.decode.max_sequences, facts.prefill.max_sequences)
        sizes = StepSizes.of((facts.decode, facts.prefill), info.plan, info.vocab_size, sampled)
        free, weights = device.free_bytes(), (directory / PLAN_FILE).stat().st_size
        parts = {"weights": weights, "KV pools": info.kv_cache_bytes, **sizes.parts}
        check_memory(parts, free, _ADVICE)
        loaded = LoadedPlan(trt, directory)
        weights = max(weights, free - device.free_bytes())
        check_memory(parts | {"weights": weights, "workspace": loaded.workspace_bytes}, free, _ADVICE)
        pages = DevicePages(device, info)
        memory = FixedMemory.take(device, pages, sizes, loaded.workspace_bytes)
        program = PlanProgram(device, loaded, facts, info.plan, memory)
        staging = Staging(device, memory.inputs, sizes.inputs)
        buckets = DecodeBuckets.of(facts.decode, info.plan)
        sampler = open_sampler(device, directory / KERNELS_FOLDER, sampled, info.vocab_size)
        return cls(StepRunner(device, program, staging, buckets, info.plan), pages, info, rows, sampler)
