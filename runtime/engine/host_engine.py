"""HostEngine: what engines have in common whose steps are done at once, with logits on the host."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from kvfold.runtime.engine.protocol import EngineInfo, StepInputs
from kvfold.runtime.sampling.batch_sampler import BatchSampler, Sampled
from kvfold.runtime.sampling.sampling_state import SamplingState


class Drawn:
    """A `Drawing` whose tokens are here, on the host alone.

    Attributes:
        feeds: no next step knows them.
    """

    feeds = False

    def __init__(self, tokens: list[Sampled]) -> None:
        """All of them."""
        self._tokens = tokens

    def collect(self) -> list[Sampled]:
        """See `Drawing.collect`."""
        return self._tokens


class HostStep:
    """A step that is done: `Underway` over logits on the host."""

    def __init__(self, logits: np.ndarray, sampler: BatchSampler) -> None:
        """Float32 [R, vocab_size], and who samples them."""
        self._logits = logits
        self._sampler = sampler

    def logits(self, rows: slice = slice(None)) -> np.ndarray:
        """See `Underway.logits`."""
        return self._logits[rows]

    def draw(self, rows: Sequence[int], states: Sequence[SamplingState]) -> Drawn:
        """See `Underway.draw`."""
        if not states:
            return Drawn([])
        whole = len(rows) == len(self._logits)
        return Drawn(self._sampler.sample(self._logits if whole else self._logits[list(rows)], states))


class HostEngine(ABC):
    """Lacks `execute` and the pages of an `Engine`."""

    def __init__(self, info: EngineInfo) -> None:
        """With a sampler for its vocabulary."""
        self._info = info
        self._sampler = BatchSampler(info.vocab_size)

    @property
    def info(self) -> EngineInfo:
        """Constant for the engine's life."""
        return self._info

    @abstractmethod
    def execute(self, step: StepInputs) -> np.ndarray:
        """See `Engine.execute`."""

    def begin(self, step: StepInputs) -> HostStep:
        """Run one step and sample on the host."""
        return HostStep(self.execute(step), self._sampler)
