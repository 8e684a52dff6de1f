"""A plan in the library that built it: deserialised once, and what its contexts share."""

from __future__ import annotations

import mmap
from pathlib import Path
from types import ModuleType
from typing import Any

from kvfold.plugins.contract.errors import TargetError
from kvfold.plugins.tensorrt.load_plugins import load_plugins, surfacing_errors
from kvfold.runtime.engine.engine_config import KERNELS_FOLDER, PLAN_FILE
from kvfold.runtime.engine.tensorrt.profiles import DECODE, PREFILL


class LoadedPlan:
    """A deserialised plan; its weights are on the GPU as long as it lives.

    Attributes:
        captures_itself: the library captures CUDA graphs of its own accord, so nobody else should.
    """

    def __init__(self, trt: ModuleType, directory: Path) -> None:
        """Deserialise a plan that preflight has passed.

        Args:
            trt: `tensorrt` or `tensorrt_rtx`.
            directory: the engine's.

        Raises:
            TargetError: the library refused it.
            KernelError: the plugin did.
        """
        load_plugins(trt, directory / KERNELS_FOLDER)
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        path = directory / PLAN_FILE
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            surfacing_errors(),
        ):
            self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise TargetError(f"{trt.__name__} refused {path}; its own words stand above. Build it again")
        # The workspace comes from outside, so that contexts, of which one runs at a time, share it.
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self.captures_itself = trt.__name__ == "tensorrt_rtx"
        self._options = {DECODE: strategy, PREFILL: strategy}
        if self.captures_itself:
            self._options = _rtx_options(trt, self._engine, strategy)

    @property
    def workspace_bytes(self) -> int:
        """Device memory that a context needs, whichever its profile."""
        return int(self._engine.device_memory_size_v2)

    def create_context(self, profile: int) -> Any:
        """An execution context without memory; its profile is still to be set."""
        with surfacing_errors():
            context = self._engine.create_execution_context(self._options[profile])
        if context is None:
            raise TargetError("TensorRT made no execution context; its own words stand above")
        return context

    def shape_range(self, name: str, profile: int) -> str:
        """The shapes that a profile takes for an input, for messages."""
        least, _, most = self._engine.get_tensor_profile_shape(name, profile)
        return f"{tuple(least)} to {tuple(most)}"


def _rtx_options(trt: ModuleType, engine: Any, strategy: Any) -> dict[int, Any]:
    """TensorRT-RTX compiles kernels when it first meets a shape; how, by profile.

    The default compiles in the background and switches kernels when they are ready, so the same tokens might
    give other bits a moment later. Decode buckets compile at once and are kept as CUDA graphs, which the
    library captures and replays by itself; prefill shapes hardly ever come again and use the kernels that
    take any shape. Compiled kernels are shared by all contexts.
    """
    cache = None
    options = {}
    kernels, graphs = trt.DynamicShapesKernelSpecializationStrategy, trt.CudaGraphStrategy
    for profile, specialization, capture in (
        (DECODE, kernels.EAGER, graphs.WHOLE_GRAPH_CAPTURE),
        (PREFILL, kernels.NONE, graphs.DISABLED),
    ):
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        config.dynamic_shapes_kernel_specialization_strategy = specialization
        config.cuda_graph_strategy = capture
        cache = cache or config.create_runtime_cache()
        config.set_runtime_cache(cache)
        options[profile] = config
    return options
