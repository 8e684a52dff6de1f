"""Execution contexts of a plan, with their memory bound."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kvfold.plugins.contract import step as contract
from kvfold.plugins.contract.errors import TargetError
from kvfold.plugins.tensorrt.load_plugins import surfacing_errors
from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.cuda.staging import BindingTable
from kvfold.runtime.engine.tensorrt.gpu_memory import FixedMemory
from kvfold.runtime.engine.tensorrt.loaded_plan import LoadedPlan


class BoundContext:
    """An execution context on one profile. Caches, logits and workspace stay; a step's inputs may move."""

    def __init__(self, plan: LoadedPlan, profile: int, device: Device, memory: FixedMemory) -> None:
        """Make a context and bind what never changes; raises TargetError where TensorRT refuses."""
        self._plan = plan
        self._profile = profile
        self._stream = device.stream
        self._inputs = memory.inputs
        self._context: Any = plan.create_context(profile)
        if not self._context.set_optimization_profile_async(profile, self._stream):
            raise TargetError(f"TensorRT refused optimisation profile {profile}; build the engine again")
        self._context.set_device_memory(memory.workspace, memory.workspace_bytes)
        for pool, address in memory.pools:
            self._set_shape(pool.input, pool.shape)
            self._set_address(pool.input, address)
            self._set_address(pool.output, address)
        self._set_address(contract.LOGITS, memory.logits)

    def bind(self, table: BindingTable) -> None:
        """Bind a step's inputs: their shapes, and their places in the device's input buffer."""
        for binding in table.bindings:
            self._set_shape(binding.name, binding.shape)
            self._set_address(binding.name, self._inputs + binding.offset)

    def enqueue(self) -> None:
        """Put the whole step on the stream; raises TargetError, or what a plugin raised."""
        with surfacing_errors():
            accepted = self._context.execute_async_v3(self._stream)
        if not accepted:
            raise TargetError("TensorRT refused to run a step; its own words stand above")

    def _set_shape(self, name: str, shape: Iterable[int]) -> None:
        wanted = tuple(shape)
        if not self._context.set_input_shape(name, wanted):
            raise TargetError(
                f"TensorRT refused shape {wanted} of {name}; profile {self._profile} takes "
                f"{self._plan.shape_range(name, self._profile)}"
            )

    def _set_address(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise TargetError(f"the plan has no input or output {name}; build the engine again")
