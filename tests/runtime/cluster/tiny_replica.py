"""What a replica of a test loads: a synthetic engine, and the tokenizer in the bundle's folder."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from kvfold.runtime.cluster.cluster_settings import ClusterSettings
from kvfold.runtime.engine.protocol import StepInputs
from kvfold.runtime.llm.async_llm import AsyncLLM
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.server.start.run_server import Loaded
from kvfold.runtime.structured.grammar_compiler import GrammarCompiler
from kvfold.runtime.text.tokenizer import BundleTokenizer
from tests.runtime.harness import PLANS
from tests.runtime.server.processes.real_server import CONTEXT, VOCAB
from tests.runtime.synthetic_engine import SyntheticEngine


class PacedEngine(SyntheticEngine):
    """Takes its time for each step, so that a test can come in between."""

    pause = 0.0

    def execute(self, step: StepInputs) -> np.ndarray:
        """As ever, later."""
        time.sleep(self.pause)
        return super().execute(step)


@dataclass(frozen=True)
class TinyReplica:
    """A function that a cluster is built with.

    Attributes:
        pages: of each pool.
        pause: seconds of a step.
    """

    pages: int = 512
    pause: float = 0.002

    def __call__(self, settings: ClusterSettings) -> Loaded:
        """Load one."""
        paths = settings.bundle / "tokenizer.json", settings.bundle / "tokenizer_config.json"
        engine = PacedEngine(PLANS["hybrid"], self.pages, VOCAB, CONTEXT)
        engine.pause = self.pause
        llm = LLM(
            engine, BundleTokenizer.load(*paths), RuntimeConfig(max_num_batched_tokens=64, max_num_seqs=8)
        )
        compiler = GrammarCompiler(paths[0].read_text(), VOCAB, [VOCAB - 1])
        return AsyncLLM(llm), compiler, settings.server.limits(llm.config.max_num_seqs)
