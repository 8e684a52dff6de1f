"""StepRunner: takes a step's arrays to the GPU in one copy and puts what computes it on the stream."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kvfold.plugins.contract import step as contract
from kvfold.plugins.contract.errors import KvfoldError
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.engine.cuda.buckets import DecodeBuckets
from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.cuda.staging import BindingTable, Staging, bind_step, write_step
from kvfold.runtime.engine.cuda.step_shape import StepShape
from kvfold.runtime.engine.protocol import StepInputs

# A step that could not be captured runs so often directly before it is tried again, and is tried so often.
RUNS_BEFORE_RETRY = 64
TRIES = 4
# Puts tokens in the place of `drawn_id`s: given the address of int64 ids on the device, and how many.
Feed = Callable[[int, int], None]


@dataclass(frozen=True)
class BoundStep:
    """A step whose inputs are bound.

    Attributes:
        enqueue: puts it on the stream.
        logits: address of its output, float32 [rows, vocab_size].
    """

    enqueue: Callable[[], None]
    logits: int


class StepProgram(Protocol):
    """What computes steps on a GPU: a TensorRT plan, or a session of ONNX Runtime.

    Attributes:
        runs_before_capture: how often a bucket runs directly before it may be captured as a CUDA graph, as
            capturing forbids what first runs do; None where nobody else should capture.
    """

    runs_before_capture: int | None

    def check(self, shape: StepShape) -> None:
        """Refuse a step that is too large; raises TargetError."""
        ...

    def bind_decode(self, table: BindingTable) -> BoundStep:
        """A step of these inputs, for good: nothing else disturbs it."""
        ...

    def bind_prefill(self, table: BindingTable) -> BoundStep:
        """A step of these inputs, until the next one."""
        ...

    def close(self) -> None:
        """Give up all that uses the device's memory. To be called once."""
        ...


@dataclass(frozen=True)
class _Prepared:
    """A shape made ready: its place in the pinned buffers, as arrays of each, and what runs it."""

    table: BindingTable
    arrays: tuple[Mapping[str, np.ndarray], ...]
    enqueue: Callable[[], None]
    logits: int


class StepRunner:
    """One step after the other, from any thread. Two may be on the stream: each has a pinned buffer."""

    def __init__(
        self, device: Device, program: StepProgram, staging: Staging, buckets: DecodeBuckets, plan: FoldPlan
    ) -> None:
        """Over a program that nobody else uses.

        Args:
            device: of the program.
            program: closed with the runner.
            staging: as large as the largest step; another one is made beside it.
            buckets: that decode steps are padded to.
            plan: of the program.
        """
        self.device = device
        self._program = program
        self._stagings = (staging, Staging(device, staging.address, staging.size))
        self._turn = 0
        self._buckets = buckets
        self._plan = plan
        self._decode: dict[StepShape, _Prepared] = {}
        self._busy = False

    def begin(self, step: StepInputs, feed: Feed | None = None) -> int:
        """Put a step on the stream; returns the address of its logits, whose first rows are the step's.

        Args:
            step: its inputs.
            feed: for a step with ids of tokens that are being drawn.

        Raises:
            KvfoldError: the step is too large, or the program or the driver failed.
        """
        self.device.activate()
        shape = StepShape.of(step, self._plan)
        self._program.check(shape)
        prepared = self._prepare_decode(shape) if shape.decodes else self._prepare_prefill(shape)
        self._turn = 1 - self._turn
        staging, arrays = self._stagings[self._turn], prepared.arrays[self._turn]
        staging.wait()  # what is pinned there may still be on its way, two steps behind
        write_step(arrays, step)
        self._busy = True
        staging.upload(prepared.table)
        if feed is not None:
            feed(staging.address + prepared.table.offset(contract.INPUT_IDS), len(step.input_ids))
        prepared.enqueue()
        return prepared.logits

    def wait(self) -> None:
        """Wait until all that was put on the stream is done."""
        self.device.synchronize()
        self._busy = False

    def close(self) -> None:
        """Give everything back: the program before the memory that it uses. To be called once."""
        if self._busy:  # nobody waits for the step
            with suppress(KvfoldError):
                self.device.activate()
                self.wait()
        self._decode.clear()
        self._program.close()
        with suppress(KvfoldError):  # a lost GPU, of which was told, takes nothing back
            self.device.close()

    def _prepare_decode(self, shape: StepShape) -> _Prepared:
        padded = self._buckets.pad(shape)
        if padded not in self._decode:
            table = bind_step(padded, self._plan)
            bound = self._program.bind_decode(table)
            step = GraphedStep(self.device, bound.enqueue, self._program.runs_before_capture)
            self._decode[padded] = self._prepared(table, step.enqueue, bound.logits)
        return self._decode[padded]

    def _prepare_prefill(self, shape: StepShape) -> _Prepared:
        table = bind_step(shape, self._plan)
        bound = self._program.bind_prefill(table)
        return self._prepared(table, bound.enqueue, bound.logits)

    def _prepared(self, table: BindingTable, enqueue: Callable[[], None], logits: int) -> _Prepared:
        arrays = tuple(staging.arrays(table) for staging in self._stagings)
        return _Prepared(table, arrays, enqueue, logits)


class GraphedStep:
    """Runs one decode bucket: directly at first, from then on as a CUDA graph.

    First runs load kernels and take memory, which capturing forbids; a bucket that is met only once is never
    captured. One that cannot be captured, as when memory is short, is tried again later; after TRIES of it,
    it runs directly for ever. The first time and the last are warned of.
    """

    def __init__(self, device: Device, enqueue: Callable[[], None], direct_runs: int | None) -> None:
        """Over a bound step whose shapes and addresses no longer change; None never captures."""
        self._device = device
        self._enqueue = enqueue
        self._direct_runs = direct_runs
        self._tries = TRIES
        self._graph: Any = None

    def enqueue(self) -> None:
        """Put the step on the stream."""
        if self._direct_runs == 0 and self._graph is None:
            self._capture()
        if self._graph is not None:
            self._device.launch(self._graph)
            return
        self._enqueue()
        if self._direct_runs:
            self._direct_runs -= 1

    def _capture(self) -> None:
        try:
            self._graph = self._device.capture(self._enqueue)
        except KvfoldError as error:
            self._tries -= 1
            self._direct_runs = RUNS_BEFORE_RETRY if self._tries else None
            said = f"a decode step cannot become a CUDA graph, and takes longer without: {error}"
            if self._tries == TRIES - 1:
                warnings.warn(f"{said}; {RUNS_BEFORE_RETRY} steps later it is tried again", stacklevel=2)
            elif not self._tries:
                warnings.warn(f"{said}; it was tried {TRIES} times, and is so no more", stacklevel=2)
