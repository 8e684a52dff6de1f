"""A recording stand-in for `tensorrt` and `tensorrt_rtx`, whose model is the synthetic engine.

It reads the step from the addresses and shapes that its context was given, checks that padding can do no
harm, writes token ids into the bound caches (8 bytes a token, as wide as a plan of `make_plan` has them) and
hashes what is visible into the bound logits. So equal tokens prove staging, padding, binding and graphs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from types import ModuleType, SimpleNamespace
from typing import Any
from weakref import WeakSet, finalize, ref

import numpy as np

from kvfold.plugins.contract import step as contract
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.engine.engine_config import StepLimits
from kvfold.runtime.engine.protocol import GroupTables, StepInputs
from tests.runtime.engine.tensorrt.cuda_stand_in import StandInDriver
from tests.runtime.synthetic_engine import SyntheticEngine


@dataclass
class Model:
    """What the stand-in's plan files hold, whatever their bytes.

    Attributes:
        plan: the FoldPlan; each bank holds 8 bytes a token in each of its caches.
        vocab: width of the logits.
        limits: of the two profiles.
        steps: arrays of every step as they were on the device when it ran.
        pages: most pages that the profiles take.
        workspace_bytes: that a context asks for.
    """

    plan: FoldPlan
    vocab: int
    limits: tuple[StepLimits, StepLimits]
    pages: int = 1 << 20
    workspace_bytes: int = 4096
    steps: list[dict[str, np.ndarray]] = field(default_factory=list)

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        """Types of the step's inputs, as `plugins.contract.step` has them."""
        wide = (contract.INPUT_IDS, contract.LOGITS_INDICES)
        names = (name for name in contract.input_names(self.plan) if not name.startswith(("key_", "value_")))
        return {name: np.dtype(np.int64 if name in wide else np.int32) for name in names}


class StandInTensorRT(ModuleType):
    """The module: execution contexts that are alive, and all runtime configs that were made."""

    def __init__(self, name: str, driver: StandInDriver, model: Model, version: str = "1.0") -> None:
        super().__init__(name)
        self.__version__ = version
        self.driver = driver
        self.model = model
        self.contexts: WeakSet[Context] = WeakSet()
        self.runtime_configs: list[RuntimeConfig] = []
        self.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
        self.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph", DISABLED="disabled")
        self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager", NONE="none")

        self.Logger = Logger
        self.Runtime = lambda logger: Runtime(self)


class Logger:
    """Takes a severity."""

    WARNING = "warning"

    def __init__(self, severity: str) -> None:
        assert severity == self.WARNING


class Runtime:
    """Refuses plans that begin with `damaged`; others take as much of the GPU as they have bytes."""

    def __init__(self, trt: StandInTensorRT) -> None:
        self._trt = trt

    def deserialize_cuda_engine(self, content: Any) -> CudaEngine | None:
        if bytes(content[:7]) == b"damaged":
            return None
        self._trt.driver.cuMemAlloc(len(content))
        return CudaEngine(self._trt)


class RuntimeConfig:
    """TensorRT-RTX's options of a context."""

    def __init__(self) -> None:
        self.strategy: str | None = None
        self.cache: object = None
        self.dynamic_shapes_kernel_specialization_strategy: str | None = None
        self.cuda_graph_strategy: str | None = None

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> object:
        return object()

    def set_runtime_cache(self, cache: object) -> bool:
        self.cache = cache
        return True


class CudaEngine:
    """A deserialised plan."""

    def __init__(self, trt: StandInTensorRT) -> None:
        self._trt = trt
        self.device_memory_size_v2 = trt.model.workspace_bytes

    def create_runtime_config(self) -> RuntimeConfig:
        self._trt.runtime_configs.append(RuntimeConfig())
        return self._trt.runtime_configs[-1]

    def create_execution_context(self, option: str | RuntimeConfig) -> Context:
        strategy = option.strategy if isinstance(option, RuntimeConfig) else option
        assert strategy == self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = Context(self._trt)
        self._trt.contexts.add(context)
        finalize(context, self._trt.driver.calls.append, "a context ends")
        return context

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(1,), (2,), (self._trt.model.pages,)]


class Context:
    """An execution context; a graph captured from it dies with the next change, as TensorRT warns."""

    def __init__(self, trt: StandInTensorRT) -> None:
        self._trt = trt
        self._driver = trt.driver
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)
        self._changes = 0
        self._ready: int | None = None

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert self._driver.capturing is None
        self.profile = profile
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self._driver.capturing is None
        model = self._trt.model
        if name not in contract.input_names(model.plan):
            return False
        if name not in model.dtypes and shape[0] > model.pages:
            return False
        self._changes += 1
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        plan = self._trt.model.plan
        if name not in (*contract.input_names(plan), *contract.output_names(plan)):
            return False
        assert address % 256 == 0
        self._changes += 1
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        plan = self._trt.model.plan
        if set(self.shapes) != set(contract.input_names(plan)):
            return False
        if set(self.addresses) != {*contract.input_names(plan), *contract.output_names(plan)}:
            return False
        assert stream == 77 and self.profile is not None and self.memory[1] >= self._trt.model.workspace_bytes
        changes = self._changes
        if self._driver.capturing is None:
            self._ready = changes
        assert self._ready == changes, "captured before it had run once with these shapes"
        self._driver.enqueue(self._work(changes, dict(self.shapes), dict(self.addresses)))
        return True

    def _work(
        self, changes: int, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]
    ) -> Callable[[], None]:
        reference = ref(self)

        def work() -> None:
            context = reference()
            assert context is not None, "the context ended before its work"
            assert context._changes == changes, "the context was changed before its work, or its graph, ran"
            context._compute(shapes, addresses)

        return work

    def _compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        model = self._trt.model
        arrays = {
            name: self._view(addresses[name], dtype, shapes[name]).copy()
            for name, dtype in model.dtypes.items()
        }
        model.steps.append(arrays)
        self._check_limits(arrays)
        step = _as_step(arrays, model.plan)
        _check_padding(step)
        synthetic = SyntheticEngine(model.plan, 1, model.vocab)
        size = model.plan.page_size
        for bank in model.plan.banks:
            slots = step.tables[bank.group].slot_mapping
            written = slots >= 0
            for cache, updated in zip(
                contract.cache_inputs(bank.layer), contract.cache_outputs(bank.layer), strict=True
            ):
                assert addresses[cache] == addresses[updated], "caches are updated in place"
                tokens, committed = self._pool(addresses[cache], shapes[cache][0], size)
                synthetic.pages.committed[bank.group] = committed
                synthetic.pages.check(bank.group, slots[written] // size)
                tokens.reshape(-1)[slots[written]] = step.input_ids[written]
                synthetic.pages.caches[bank.layer] = tokens + 1  # memory just committed holds token 0
        logits = self._view(
            addresses[contract.LOGITS], np.dtype(np.float32), (*shapes[contract.LOGITS_INDICES], model.vocab)
        )
        for row, index in enumerate(step.logits_indices.tolist()):
            logits[row] = synthetic.logits(step, index)

    def _check_limits(self, arrays: dict[str, np.ndarray]) -> None:
        assert self.profile is not None
        limits = self._trt.model.limits[self.profile]
        tokens, sequences = len(arrays[contract.INPUT_IDS]), len(arrays[contract.PAST_SEQLENS])
        assert (tokens == sequences) == (self.profile == 0)
        assert tokens <= limits.max_tokens and sequences <= limits.max_sequences
        assert len(arrays[contract.LOGITS_INDICES]) <= limits.max_logits
        for group, width in limits.max_table_width.items():
            assert arrays[contract.block_table(group)].shape[1] <= width

    def _pool(self, address: int, pages: int, page_size: int) -> tuple[np.ndarray, np.ndarray]:
        """A pool's tokens, int64 [pages, page_size], and which of its pages have memory."""
        page, committed = 8 * page_size, np.zeros(pages, bool)
        for start, end in self._driver.pieces(address, pages * page):
            committed[(start - address) // page : (end - address) // page] = True
        content = np.ctypeslib.as_array((ctypes.c_uint8 * (pages * page)).from_address(address))
        return content.view(np.int64).reshape(pages, page_size), committed

    def _view(self, address: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        size = dtype.itemsize * prod(shape)
        self._driver.check_device(address, size)
        content: np.ndarray = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return content.view(dtype).reshape(shape)


def _as_step(arrays: dict[str, np.ndarray], plan: FoldPlan) -> StepInputs:
    return StepInputs(
        input_ids=arrays[contract.INPUT_IDS],
        cumulative_sequence_length=arrays[contract.CUMULATIVE_SEQUENCE_LENGTH],
        past_seqlens=arrays[contract.PAST_SEQLENS],
        logits_indices=arrays[contract.LOGITS_INDICES],
        tables={
            group.name: GroupTables(
                arrays[contract.block_table(group.name)], arrays[contract.slot_mapping(group.name)]
            )
            for group in plan.groups
        },
    )


def _check_padding(step: StepInputs) -> None:
    """A token that writes nothing is a sequence of its own that sees nothing, in every group."""
    silent = [tables.slot_mapping < 0 for tables in step.tables.values()]
    assert all(np.array_equal(silent[0], other) for other in silent)
    lengths = np.diff(step.cumulative_sequence_length)
    assert lengths.min() >= 1 and step.cumulative_sequence_length[-1] == len(step.input_ids)
    for token in np.flatnonzero(silent[0]):
        sequence = int(np.searchsorted(step.cumulative_sequence_length, token, side="right")) - 1
        assert lengths[sequence] == 1 and step.past_seqlens[sequence] == 0
        assert all((tables.block_table[sequence] == -1).all() for tables in step.tables.values())
