"""What a replica of a test loads: a synthetic engine, and the tokenizer in the bundle's folder."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass

import numpy as np

from kvfold.runtime.cluster.cluster_settings import ClusterSettings
from kvfold.runtime.engine.protocol import StepInputs
from kvfold.runtime.llm.async_llm import AsyncLLM
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.memory.open_tier import stack_tiers
from kvfold.runtime.memory.tiers.layout import TierLayout
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.server.start.kept_pages import kept_pages
from kvfold.runtime.server.start.run_server import Loaded
from kvfold.runtime.structured.grammar_compiler import GrammarCompiler
from kvfold.runtime.text.tokenizer import BundleTokenizer
from tests.runtime.harness import PLANS
from tests.runtime.server.processes.real_server import CONTEXT, VOCAB
from tests.runtime.synthetic_engine import SyntheticEngine


class StepGate:
    """Lets engines of one process take so many steps and no more; open at first."""

    def __init__(self) -> None:
        """Open."""
        self._left = math.inf
        self._waiting = 0
        self._changed = threading.Condition()

    def allow(self, steps: float) -> None:
        """So many from now on."""
        with self._changed:
            self._left = steps
            self._changed.notify_all()

    @property
    def holds(self) -> bool:
        """Whether an engine waits."""
        return self._waiting > 0

    def take(self) -> None:
        """Wait for a step."""
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: self._left > 0)
            self._waiting -= 1
            self._left -= 1


class PacedEngine(SyntheticEngine):
    """Takes its time for each step, and waits where a test holds it."""

    pause = 0.0
    gate: StepGate | None = None

    def execute(self, step: StepInputs) -> np.ndarray:
        """As ever, later."""
        if self.gate is not None:
            self.gate.take()
        time.sleep(self.pause)
        return super().execute(step)


@dataclass(frozen=True)
class TinyReplica:
    """A function that a cluster is built with.

    Attributes:
        pages: of each pool.
        pause: seconds of a step.
        gate: what holds it, within this process.
    """

    pages: int = 512
    pause: float = 0.002
    gate: StepGate | None = None

    def __call__(self, settings: ClusterSettings) -> Loaded:
        """Load one."""
        paths = settings.bundle / "tokenizer.json", settings.bundle / "tokenizer_config.json"
        engine = PacedEngine(PLANS["hybrid"], self.pages, VOCAB, CONTEXT)
        engine.pause, engine.gate = self.pause, self.gate
        kept = kept_pages(settings.server)
        config = RuntimeConfig(max_num_batched_tokens=64, max_num_seqs=8, **kept)
        layout = TierLayout.of(PLANS["hybrid"])
        tier = stack_tiers(layout, layout.root_key("synthetic", "hash"), config)
        llm = LLM(engine, BundleTokenizer.load(*paths), config, tier)
        compiler = GrammarCompiler(paths[0].read_text(), VOCAB, [VOCAB - 1])
        return AsyncLLM(llm), compiler, settings.server.limits(llm.config.max_num_seqs)
