"""PlanProgram: the contexts of a TensorRT plan as what computes steps."""

from __future__ import annotations

from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.cuda.staging import BindingTable
from kvfold.runtime.engine.cuda.step_runner import BoundStep
from kvfold.runtime.engine.cuda.step_shape import StepShape
from kvfold.runtime.engine.engine_config import TensorRTFacts
from kvfold.runtime.engine.tensorrt.context import BoundContext
from kvfold.runtime.engine.tensorrt.gpu_memory import FixedMemory
from kvfold.runtime.engine.tensorrt.loaded_plan import LoadedPlan
from kvfold.runtime.engine.tensorrt.profiles import DECODE, PREFILL, choose_profile


class PlanProgram:
    """See `StepProgram`. A context for prefill, and one for each bucket of decode steps.

    A graph is undefined once the context that it was captured from takes other shapes, so no other bucket may
    use the context (TensorRT developer guide, "CUDA Graphs").
    """

    def __init__(
        self, device: Device, loaded: LoadedPlan, facts: TensorRTFacts, plan: FoldPlan, memory: FixedMemory
    ) -> None:
        """Bind the prefill context.

        Args:
            device: with the memory.
            loaded: the deserialised plan.
            facts: limits of its profiles.
            plan: the FoldPlan.
            memory: that every context is bound to.
        """
        self._device = device
        self._loaded = loaded
        self._facts = facts
        self._plan = plan
        self._memory = memory
        self._prefill = BoundContext(loaded, PREFILL, device, memory)
        self._decode: list[BoundContext] = []
        self.runs_before_capture = None if loaded.captures_itself else 1

    def check(self, shape: StepShape) -> None:
        """See `StepProgram.check`."""
        choose_profile(shape, self._facts, self._plan)

    def bind_decode(self, table: BindingTable) -> BoundStep:
        """See `StepProgram.bind_decode`."""
        context = BoundContext(self._loaded, DECODE, self._device, self._memory)
        context.bind(table)
        self._decode.append(context)
        return BoundStep(context.enqueue, self._memory.logits)

    def bind_prefill(self, table: BindingTable) -> BoundStep:
        """See `StepProgram.bind_prefill`. A context is not changed while it may be at work."""
        self._device.synchronize()
        self._prefill.bind(table)
        return BoundStep(self._prefill.enqueue, self._memory.logits)

    def close(self) -> None:
        """See `StepProgram.close`: contexts before the plan."""
        self._decode.clear()
        del self._prefill, self._loaded
