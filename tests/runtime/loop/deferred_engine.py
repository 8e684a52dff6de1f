"""The synthetic engine, as late as a GPU may be: it computes when somebody waits, or touches a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kvfold.runtime.engine.host_engine import HostStep
from kvfold.runtime.engine.protocol import GroupTables, StepInputs
from kvfold.runtime.sampling.batch_sampler import Sampled
from kvfold.runtime.sampling.sampling_state import SamplingState
from tests.runtime.synthetic_engine import SyntheticEngine
from tests.runtime.synthetic_pages import SyntheticPages


class DeferredEngine(SyntheticEngine):
    """What is done to pages before a step was waited for comes after it, as on a stream.

    Attributes:
        deferred: steps that were still to be computed when `begin` returned.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.pages = _PagesAfterSteps(self.info, self.finish)
        self._pending: _DeferredStep | None = None
        self.deferred = 0

    def begin(self, step: StepInputs) -> _DeferredStep:  # type: ignore[override]
        self.finish()
        taken = _copied(step)
        self._pending = _DeferredStep(lambda: super(DeferredEngine, self).begin(taken))
        self.deferred += 1
        return self._pending

    def finish(self) -> None:
        """Compute what is under way."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.wait()


class _DeferredStep:
    def __init__(self, compute: Callable[[], HostStep]) -> None:
        self._compute = compute
        self._done: HostStep | None = None

    def _result(self) -> HostStep:
        if self._done is None:
            self._done = self._compute()
        return self._done

    def wait(self) -> None:
        self._result()

    def logits(self, rows: slice = slice(None)) -> np.ndarray:
        return self._result().logits(rows)

    def sample(self, rows: Sequence[int], states: Sequence[SamplingState]) -> list[Sampled]:
        return self._result().sample(rows, states)


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
