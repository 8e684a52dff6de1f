"""What a step takes with a simulated GPU: `python -m tests.runtime.loop.measure_overlap`.

The GPU is a clock: a step is done so long after the one before it, and all tokens are the same. The clock
goes on with the CPU time of the host's thread, and by leaps where the host waits. So neighbours on the
machine do not count. What is seen is the runtime's work (schedule, inputs, commit, stop checks, text), and
how much of it the GPU waits for. Calls of a driver and a server are not in it. "Waits" takes every token
before the next step begins.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from kvfold.plugins.cpu.sampling_calls import NativeRow, Results
from kvfold.runtime.engine.host_engine import Drawn
from kvfold.runtime.engine.protocol import Drawing, EngineInfo, StepInputs
from kvfold.runtime.engine.slabs import address_pages
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.sampling.batch_sampler import BatchSampler, Sampled
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.sampling.sampling_state import SamplingState
from kvfold.runtime.scheduler.request import Prompt
from tests.runtime.byte_tokenizer import VOCAB, ByteTokenizer
from tests.runtime.harness import PLANS
from tests.runtime.synthetic_pages import SyntheticPages

SEQUENCES, SECONDS, TOKENS, RUNS = (1, 64, 256), (0.001, 0.003), 60, 5


class SimulatedGpu:
    """Steps that take a given time on a clock of their own, one behind the other; all tokens are an `a`."""

    def __init__(self, seconds: float, feeds: bool, sequences: int) -> None:
        plan = PLANS["hybrid"]
        pages = {group.name: 16 * sequences for group in plan.groups}
        budget = sum(pages[group.name] * group.page_bytes(plan.page_size) for group in plan.groups)
        slabs = dict.fromkeys(pages, 4)
        addresses = address_pages(plan, budget, slabs)
        self.info = EngineInfo(plan, budget, addresses, slabs, VOCAB, 512, "simulated")
        self.pages = SyntheticPages(self.info)
        self.feeds = feeds
        self.sampler = BatchSampler(VOCAB, _SameTokens)
        self._seconds = seconds
        self.free_at = self._leapt = 0.0
        self.decoding: list[float] = []

    def leap(self, moment: float) -> None:
        """Let the clock go on to a moment, unless it is past."""
        self._leapt += max(0.0, moment - self._now())

    def _now(self) -> float:
        return time.thread_time() + self._leapt

    def begin(self, step: StepInputs) -> _SimulatedStep:
        self.free_at = max(self._now(), self.free_at) + self._seconds
        if len(step.input_ids) == len(step.past_seqlens):
            self.decoding.append(self.free_at)
        return _SimulatedStep(self, self.free_at)

    def execute(self, step: StepInputs) -> np.ndarray:
        raise NotImplementedError


class _SameTokens:
    def __init__(self, rows: Sequence[NativeRow]) -> None:
        self.results = Results(len(rows), 0)
        self.results.tokens[:] = ord("a")

    def begin(self, logits: Any) -> None:
        """Nothing to compute."""

    def finish(self) -> int:
        return 0

    def sample_again(self, logits: Any, at: int) -> bool:
        return True


class _SimulatedStep:
    def __init__(self, gpu: SimulatedGpu, done: float) -> None:
        self._gpu, self._done = gpu, done

    @property
    def feeds(self) -> bool:
        return self._gpu.feeds

    def logits(self, rows: slice = slice(None)) -> np.ndarray:
        raise NotImplementedError

    def draw(self, rows: Sequence[int], states: Sequence[SamplingState]) -> Drawing:
        self._states = states
        if states:
            self._gpu.sampler.begin(None, states)
        return self if self._gpu.feeds else Drawn(self.collect())

    def collect(self) -> list[Sampled]:
        self._gpu.leap(self._done)
        return self._gpu.sampler.finish() if self._states else []


def measure(sequences: int, seconds: float, feeds: bool) -> float:
    """Milliseconds from one decode step's end to the next one's on the GPU, the median of a run."""
    gpu = SimulatedGpu(seconds, feeds, sequences)
    config = RuntimeConfig(max_num_batched_tokens=16 * sequences, max_num_seqs=sequences)
    llm = LLM(gpu, ByteTokenizer(()), config)
    prompts = [Prompt(np.full(9, number % 250)) for number in range(sequences)]
    params = SamplingParams(max_tokens=TOKENS)
    llm.generator.run([llm.generator.prepare(prompt, params) for prompt in prompts])
    return 1000 * float(np.median(np.diff(gpu.decoding)[10:-10]))


def main() -> None:
    """A line for each GPU and number of sequences: medians of several runs."""
    print("| simulated step, ms | sequences | waits, ms | overlaps, ms |")
    print("|---:|---:|---:|---:|")
    for seconds in SECONDS:
        for sequences in SEQUENCES:
            waits, overlaps = (
                statistics.median(measure(sequences, seconds, feeds) for _ in range(RUNS))
                for feeds in (False, True)
            )
            print(f"| {1000 * seconds:.0f} | {sequences} | {waits:.2f} | {overlaps:.2f} |", flush=True)


if __name__ == "__main__":
    main()
