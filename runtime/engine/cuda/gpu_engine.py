"""GpuEngine: what engines on an NVIDIA GPU have in common, whatever computes their steps."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import finalize

import numpy as np

from kvfold.runtime.engine.cuda.device_pages import DevicePages
from kvfold.runtime.engine.cuda.device_sampler import MOST_LIKELY, DeviceRows, DeviceSampler
from kvfold.runtime.engine.cuda.step_runner import StepRunner
from kvfold.runtime.engine.protocol import EngineInfo, PageStore, StepInputs
from kvfold.runtime.engine.slabs import runs
from kvfold.runtime.sampling.batch_sampler import BatchSampler, Sampled
from kvfold.runtime.sampling.sampling_state import SamplingState


class GpuEngine:
    """Executes steps on one NVIDIA GPU. Not thread-safe: one step at a time, from any thread.

    The GPU's memory is given back by `close`, or when the engine and the last logits it returned are gone.
    """

    def __init__(
        self,
        runner: StepRunner,
        pages: DevicePages,
        info: EngineInfo,
        rows: int,
        sampler: DeviceSampler | None,
    ) -> None:
        """Over a runner that nobody else uses.

        Args:
            runner: closed with the engine.
            pages: the KV pools.
            info: what the scheduler must know.
            rows: of logits that are brought to the host at once.
            sampler: of the runner's device; None: all is sampled on the host.
        """
        self._info = info
        self._runner = runner
        self._pages = pages
        pinned = runner.device.allocate_pinned(4 * rows * info.vocab_size)
        self._pinned = pinned.view(np.float32).reshape(-1, info.vocab_size)
        self._host = BatchSampler(info.vocab_size)
        self._gpu = None if sampler is None else BatchSampler(info.vocab_size, sampler.batch)
        # Logits returned are views of these bytes: as long as one is alive, so is what it looks at.
        self._close = finalize(pinned, runner.close)

    @property
    def info(self) -> EngineInfo:
        """Constant for the engine's life."""
        return self._info

    @property
    def pages(self) -> PageStore:
        """The bytes of its pools."""
        return self._pages

    def begin(self, step: StepInputs) -> DeviceStep:
        """Put one step on the GPU.

        Raises:
            KvfoldError: the step is too large, or what computes it or the driver failed.
        """
        return DeviceStep(self, self._runner.begin(step), len(step.logits_indices))

    def execute(self, step: StepInputs) -> np.ndarray:
        """Run one step; the returned logits [R, vocab_size] are overwritten by the next one.

        Raises:
            KvfoldError: as `begin`.
        """
        return self.begin(step).logits()

    def wait(self) -> None:
        """Wait until the step is done; raises KvfoldError where it failed."""
        self._runner.device.activate()
        self._runner.wait()

    def download(self, logits: int, rows: Sequence[int]) -> np.ndarray:
        """Rows of logits at an address of the device, as many at once as there is pinned memory for."""
        most, device = len(self._pinned), self._runner.device
        device.activate()
        found = (
            self._pinned if len(rows) <= most else np.empty((len(rows), self._info.vocab_size), np.float32)
        )
        for start in range(0, len(rows), most):
            wanted = np.asarray(rows[start : start + most])
            for run in runs(wanted):
                device.download(self._pinned[run], logits + int(wanted[run.start]) * self._pinned.strides[0])
            self._runner.wait()
            if found is not self._pinned:
                found[start : start + len(wanted)] = self._pinned[: len(wanted)]
        return found[: len(rows)]

    def sample(self, logits: int, rows: Sequence[int], states: Sequence[SamplingState]) -> list[Sampled]:
        """Sample from rows of logits at an address of the device."""
        if self._gpu is None:
            return self._host.sample(self.download(logits, rows), states)
        # Who samples a row does not depend on its neighbours.
        mine = [at for at, state in enumerate(states) if state.native.likely <= MOST_LIKELY]
        rest = [at for at, state in enumerate(states) if state.native.likely > MOST_LIKELY]
        drawn: dict[int, Sampled] = {}
        self._runner.device.activate()
        if mine:
            lying = DeviceRows(logits, tuple(rows[at] for at in mine), self._runner.wait)
            drawn |= zip(mine, self._gpu.sample(lying, [states[at] for at in mine]), strict=True)
        if rest:
            fetched = self.download(logits, [rows[at] for at in rest])
            drawn |= zip(rest, self._host.sample(fetched, [states[at] for at in rest]), strict=True)
        return [drawn[at] for at in range(len(states))]

    def close(self) -> None:
        """Give the GPU's memory back; logits returned so far are gone with it."""
        self._close()


class DeviceStep:
    """A step on the GPU's stream; see `Underway`."""

    def __init__(self, engine: GpuEngine, logits: int, count: int) -> None:
        """Its logits lie at an address of the device, `count` rows."""
        self._engine = engine
        self._logits = logits
        self._count = count

    def wait(self) -> None:
        """See `Underway.wait`."""
        self._engine.wait()

    def logits(self, rows: slice = slice(None)) -> np.ndarray:
        """See `Underway.logits`."""
        return self._engine.download(self._logits, range(self._count)[rows])

    def sample(self, rows: Sequence[int], states: Sequence[SamplingState]) -> list[Sampled]:
        """See `Underway.sample`."""
        return self._engine.sample(self._logits, rows, states)
