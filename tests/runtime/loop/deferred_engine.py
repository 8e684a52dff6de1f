"""The synthetic engine, as late as a GPU may be: it computes when somebody waits, or touches a page."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kvfold.plugins.cpu.sampling_calls import Batch, NativeRow
from kvfold.runtime.engine.host_engine import Drawn
from kvfold.runtime.engine.protocol import Drawing, GroupTables, StepInputs
from kvfold.runtime.sampling.batch_sampler import BatchSampler, Sampled
from kvfold.runtime.sampling.sampling_state import SamplingState
from tests.runtime.synthetic_engine import SyntheticEngine
from tests.runtime.synthetic_pages import SyntheticPages


class Work:
    """Something on a stream, done when all before it is. Once something failed, all after it has."""

    def __init__(self, stream: deque[Work], function: Callable[[], Any]) -> None:
        self._stream, self._function = stream, function
        self._done = False
        self._result: Any = None
        self._error: Exception | None = None
        stream.append(self)

    def result(self) -> Any:
        """Wait for it."""
        while not self._done:
            first = self._stream.popleft()
            first._done = True
            try:
                first._result = first._function()
            except Exception as error:
                for each in (first, *self._stream):
                    each._done, each._error = True, error
                self._stream.clear()
        if self._error is not None:
            raise self._error
        return self._result


class DeferredEngine(SyntheticEngine):
    """Steps, and the drawing of tokens, on a stream; what is done to pages comes after all that is on it.

    Attributes:
        stream: what is not done yet.
        drawn: the tokens of the last drawing, where the next step finds them.
        ahead: steps that were begun before the tokens of the one before were collected.
    """

    feeds = True

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.pages = _PagesAfterSteps(self.info, self.finish)
        self.stream: deque[Work] = deque()
        self.drawn = np.empty(0, np.int64)
        self.collected = True
        self.ahead = 0
        self.sampler = BatchSampler(self.info.vocab_size, lambda rows: _LateBatch(self, rows))

    def begin(self, step: StepInputs) -> _DeferredStep:  # type: ignore[override]
        taken = _copied(step)
        self.ahead += not self.collected
        assert self.collected or self.feeds
        return _DeferredStep(self, Work(self.stream, lambda: self.execute(self._fed(taken))))

    def finish(self) -> None:
        """Compute all that is under way."""
        if self.stream:
            self.stream[-1].result()

    def _fed(self, step: StepInputs) -> StepInputs:
        named = step.input_ids < 0
        step.input_ids[named] = self.drawn[-1 - step.input_ids[named]]
        return step


class WaitingEngine(DeferredEngine):
    """Every token is collected before the next step begins."""

    feeds = False


class _LateBatch:
    """A `RowBatch` that samples on the stream."""

    def __init__(self, engine: DeferredEngine, rows: Sequence[NativeRow]) -> None:
        self._engine = engine
        self._batch = Batch(rows)
        self.results = self._batch.results

    def begin(self, logits: Callable[[], np.ndarray]) -> None:
        self._work = Work(self._engine.stream, lambda: self._sample(logits()))

    def finish(self) -> int:
        failed: int = self._work.result()
        return failed

    def sample_again(self, logits: Callable[[], np.ndarray], at: int) -> bool:
        return self._batch.sample_again(logits(), at)

    def _sample(self, logits: np.ndarray) -> int:
        self._batch.begin(logits)
        self._engine.drawn = np.maximum(self.results.tokens, 0)
        return self._batch.finish()


class _DeferredStep:
    def __init__(self, engine: DeferredEngine, work: Work) -> None:
        self._engine, self._work = engine, work

    def logits(self, rows: slice = slice(None)) -> np.ndarray:
        found: np.ndarray = self._work.result()[rows]
        return found

    def draw(self, rows: Sequence[int], states: Sequence[SamplingState]) -> Drawing:
        engine = self._engine
        assert engine.collected, "tokens of a step before are still to be collected"
        if states:
            engine.sampler.begin(lambda: self.logits()[list(rows)], states)
        if not engine.feeds or any(state.guesses for state in states):
            self._work.result()
            return Drawn(engine.sampler.finish() if states else [])
        engine.collected = False
        return _DeferredDrawing(engine, self._work, bool(states))


class _DeferredDrawing:
    feeds = True

    def __init__(self, engine: DeferredEngine, step: Work, draws: bool) -> None:
        self._engine, self._step, self._draws = engine, step, draws

    def collect(self) -> list[Sampled]:
        assert not self._engine.collected, "collected twice"
        self._engine.collected = True
        self._step.result()
        return self._engine.sampler.finish() if self._draws else []


class _PagesAfterSteps(SyntheticPages):
    def __init__(self, info: Any, finish: Callable[[], None]) -> None:
        super().__init__(info)
        self._finish = finish

    def commit(self, group: str, slabs: Sequence[int]) -> None:
        self._finish()
        super().commit(group, slabs)

    def decommit(self, group: str, slabs: Sequence[int]) -> None:
        self._finish()
        super().decommit(group, slabs)

    def copy_out(self, group: str, pages: np.ndarray, buffer: np.ndarray) -> None:
        self._finish()
        super().copy_out(group, pages, buffer)

    def copy_in(self, group: str, pages: np.ndarray, buffer: np.ndarray) -> None:
        self._finish()
        super().copy_in(group, pages, buffer)

    def move(self, group: str, sources: np.ndarray, targets: np.ndarray) -> None:
        self._finish()
        super().move(group, sources, targets)


def _copied(step: StepInputs) -> StepInputs:
    """The runner has taken the step to its pinned memory: the builder's arrays may change."""
    tables = {
        name: GroupTables(each.block_table.copy(), each.slot_mapping.copy())
        for name, each in step.tables.items()
    }
    return StepInputs(
        step.input_ids.copy(),
        step.cumulative_sequence_length.copy(),
        step.past_seqlens.copy(),
        step.logits_indices.copy(),
        tables,
    )
