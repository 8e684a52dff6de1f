"""GpuEngine: what engines on an NVIDIA GPU have in common, whatever computes their steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import finalize

import numpy as np

from kvfold.runtime.engine.cuda.device_pages import DevicePages
from kvfold.runtime.engine.cuda.device_sampler import MOST_LIKELY, DeviceRows, DeviceSampler
from kvfold.runtime.engine.cuda.step_runner import StepRunner
from kvfold.runtime.engine.host_engine import Drawn
from kvfold.runtime.engine.protocol import Drawing, EngineInfo, PageStore, StepInputs
from kvfold.runtime.engine.slabs import runs
from kvfold.runtime.sampling.batch_sampler import BatchSampler, Sampled
from kvfold.runtime.sampling.sampling_state import SamplingState


class GpuEngine:
    """Executes steps on one NVIDIA GPU. Not thread-safe: one call at a time, from any thread.

    While tokens of a step are drawn on the GPU, the next step may be put behind it: all is on one stream.

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
        self._sampler = sampler
        self._step_done = runner.device.new_event()
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
        feed = None
        if (step.input_ids < 0).any():
            assert self._sampler is not None, "no tokens were drawn on the GPU"
            feed = self._sampler.feed
        return DeviceStep(self, self._runner.begin(step, feed), len(step.logits_indices))

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

    def draw(self, logits: int, rows: Sequence[int], states: Sequence[SamplingState]) -> Drawing:
        """Draw from rows of logits at an address of the device.

        Tokens of the GPU feed the next step, unless the logits are looked at again: by the host, or where a
        guess may be refused by its grammar.
        """
        self._runner.device.activate()
        if self._gpu is None:
            return Drawn(self._draw_here(logits, rows, states))
        if any(state.native.likely > MOST_LIKELY for state in states):
            return Drawn(self._draw_apart(self._gpu, logits, rows, states))
        if not states:
            self._runner.device.record(self._step_done)
            return DeviceDrawing(self._reach_step)
        self._gpu.begin(DeviceRows(logits, tuple(rows)), states)
        if any(state.guesses for state in states):
            return Drawn(self._gpu.finish())
        return DeviceDrawing(self._reach_tokens)

    def _draw_here(self, logits: int, rows: Sequence[int], states: Sequence[SamplingState]) -> list[Sampled]:
        """On the host."""
        if not states:
            self.wait()
            return []
        return self._host.sample(self.download(logits, rows), states)

    def _draw_apart(
        self, gpu: BatchSampler, logits: int, rows: Sequence[int], states: Sequence[SamplingState]
    ) -> list[Sampled]:
        """Some on the host: who samples a row does not depend on its neighbours."""
        drawn: dict[int, Sampled] = {}
        mine = [at for at, state in enumerate(states) if state.native.likely <= MOST_LIKELY]
        rest = [at for at, state in enumerate(states) if state.native.likely > MOST_LIKELY]
        if mine:
            lying = DeviceRows(logits, tuple(rows[at] for at in mine))
            drawn |= zip(mine, gpu.sample(lying, [states[at] for at in mine]), strict=True)
        here = self._draw_here(logits, [rows[at] for at in rest], [states[at] for at in rest])
        drawn |= zip(rest, here, strict=True)
        return [drawn[at] for at in range(len(states))]

    def _reach_step(self) -> list[Sampled]:
        self._runner.device.activate()
        self._runner.device.reach(self._step_done)
        return []

    def _reach_tokens(self) -> list[Sampled]:
        assert self._gpu is not None
        self._runner.device.activate()
        return self._gpu.finish()

    def close(self) -> None:
        """Give the GPU's memory back; logits returned so far are gone with it."""
        self._close()


class DeviceDrawing:
    """Tokens that are drawn on the GPU: a `Drawing`.

    Attributes:
        feeds: the next step finds them there.
    """

    feeds = True

    def __init__(self, collect: Callable[[], list[Sampled]]) -> None:
        """What waits for them."""
        self.collect = collect


class DeviceStep:
    """A step on the GPU's stream; see `Underway`."""

    def __init__(self, engine: GpuEngine, logits: int, count: int) -> None:
        """Its logits lie at an address of the device, `count` rows."""
        self._engine = engine
        self._logits = logits
        self._count = count

    def wait(self) -> None:
        """Wait until it is done; raises KvfoldError where it failed."""
        self._engine.wait()

    def logits(self, rows: slice = slice(None)) -> np.ndarray:
        """See `Underway.logits`."""
        return self._engine.download(self._logits, range(self._count)[rows])

    def draw(self, rows: Sequence[int], states: Sequence[SamplingState]) -> Drawing:
        """See `Underway.draw`."""
        return self._engine.draw(self._logits, rows, states)
