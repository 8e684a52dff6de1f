"""An engine that computes nothing, so that all the time is the runtime's and the server's."""

from __future__ import annotations

from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING

import numpy as np

from kvfold.pipeline.bench.no_pages import NoPages
from kvfold.runtime.bundle import TOKENIZER, TOKENIZER_CONFIG, open_bundle
from kvfold.runtime.engine.engine_files import open_engine
from kvfold.runtime.engine.protocol import EngineInfo, StepInputs
from kvfold.runtime.llm.llm import DEFAULT_TARGET, LLM
from kvfold.runtime.memory.budget import kv_cache_bytes
from kvfold.runtime.text.tokenizer import BundleTokenizer

if TYPE_CHECKING:
    from kvfold.runtime.runtime_config import RuntimeConfig

TEXT = " a"  # of every token


class ZeroCostEngine:
    """Wants the same token next, whatever it is given."""

    def __init__(self, info: EngineInfo, token_id: int, rows: int, pause: float) -> None:
        """Logits of up to `rows` sequences a step, which takes `pause` seconds of no CPU."""
        self.info = info
        self.pages = NoPages()
        self._pause = pause
        self._logits = np.zeros((rows, info.vocab_size), np.float32)
        self._logits[:, token_id] = 1.0

    def execute(self, step: StepInputs) -> np.ndarray:
        """Float32 [R, vocab_size], the same memory each time."""
        if self._pause:
            sleep(self._pause)
        return self._logits[: len(step.logits_indices)]


def load_zero_cost(bundle: Path, config: RuntimeConfig, pause: float = 0.0) -> LLM:
    """A bundle's plan, pools and tokenizer over an engine that computes nothing.

    Readers fall behind an engine that takes no time, and then get several tokens at once. A `pause`, in
    seconds a step, gives them theirs one by one, as a real engine does.
    """
    opened = open_bundle(bundle)
    files = open_engine(opened, DEFAULT_TARGET)
    tokenizer = BundleTokenizer.load(opened.file(TOKENIZER), opened.file(TOKENIZER_CONFIG))
    context = files.config.max_context_length
    info = files.info(kv_cache_bytes(files.plan, files.slab_pages, config, context))
    token_id = tokenizer.encode_rendered(TEXT)[-1]
    return LLM(ZeroCostEngine(info, token_id, config.max_num_seqs, pause), tokenizer, config)
