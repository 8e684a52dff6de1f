"""StepRunner: takes a step's arrays to the GPU, runs them on a profile, brings the logits back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.cuda.device_pages import DevicePages
from kvfold.runtime.engine.engine_config import TensorRTFacts
from kvfold.runtime.engine.protocol import EngineInfo, StepInputs
from kvfold.runtime.engine.tensorrt.buckets import DecodeBuckets
from kvfold.runtime.engine.tensorrt.context import BoundContext, GraphedStep
from kvfold.runtime.engine.tensorrt.gpu_memory import FixedMemory, StepSizes
from kvfold.runtime.engine.tensorrt.loaded_plan import LoadedPlan
from kvfold.runtime.engine.tensorrt.profiles import DECODE, PREFILL, StepShape, choose_profile
from kvfold.runtime.engine.tensorrt.staging import BindingTable, Staging, bind_step, write_step


@dataclass(frozen=True)
class _Prepared:
    """A shape made ready: its place in the pinned buffer, as arrays too, and what runs it."""

    table: BindingTable
    arrays: Mapping[str, np.ndarray]
    enqueue: Callable[[], None]


class StepRunner:
    """Everything of an engine that lives on the GPU. One step at a time.

    Attributes:
        pages: the KV pools.
    """

    def __init__(
        self,
        device: Device,
        loaded: LoadedPlan,
        facts: TensorRTFacts,
        info: EngineInfo,
        sizes: StepSizes,
    ) -> None:
        """Take the memory and bind the prefill context.

        Args:
            device: with room for all of it (`gpu_memory.check_memory`).
            loaded: the deserialised plan.
            facts: limits of its profiles.
            info: plan and pages of its pools.
            sizes: of the largest step.
        """
        self._device = device
        self._loaded = loaded
        self._facts = facts
        self._plan = info.plan
        self.pages = DevicePages(device, info)
        self._memory = FixedMemory.take(device, self.pages, sizes, loaded.workspace_bytes)
        self._staging = Staging(device, self._memory.inputs, sizes.inputs)
        self._buckets = DecodeBuckets.of(facts.decode, info.plan)
        self._decode: dict[StepShape, _Prepared] = {}
        self._prefill = BoundContext(loaded, PREFILL, device, self._memory)

    def run(self, step: StepInputs, logits: np.ndarray) -> None:
        """Run one step.

        Args:
            step: as the scheduler made it.
            logits: pinned float32 [R, vocab_size], written before the return.

        Raises:
            TargetError: the step is outside of the plan's limits, or TensorRT or the driver failed.
        """
        self._device.activate()
        shape = StepShape.of(step, self._plan)
        decodes = choose_profile(shape, self._facts, self._plan) == DECODE
        prepared = self._prepare_decode(shape) if decodes else self._prepare_prefill(shape)
        write_step(prepared.arrays, step)
        self._staging.upload(prepared.table)
        prepared.enqueue()
        self._device.download(logits, self._memory.logits)
        self._device.synchronize()

    def close(self) -> None:
        """Give everything back: contexts and plan before the memory that they use. To be called once."""
        self._decode.clear()
        del self._prefill, self._loaded
        self._device.close()

    def _prepare_decode(self, shape: StepShape) -> _Prepared:
        padded = self._buckets.pad(shape)
        if padded not in self._decode:
            context = BoundContext(self._loaded, DECODE, self._device, self._memory)
            table = bind_step(padded, self._plan)
            context.bind(table)
            step = GraphedStep(self._device, context, self._loaded.captures_itself)
            self._decode[padded] = _Prepared(table, self._staging.arrays(table), step.enqueue)
        return self._decode[padded]

    def _prepare_prefill(self, shape: StepShape) -> _Prepared:
        table = bind_step(shape, self._plan)
        self._prefill.bind(table)
        return _Prepared(table, self._staging.arrays(table), self._prefill.enqueue)
