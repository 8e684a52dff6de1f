"""An engine that computes nothing, so that all the time is the runtime's and the server's."""

from __future__ import annotations

from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING

import numpy as np

from kvfold.pipeline.bench.no_pages import NoPages
from kvfold.runtime.bundle import TOKENIZER, TOKENIZER_CONFIG, open_bundle
from kvfold.runtime.engine.engine_files import open_engine
from kvfold.runtime.engine.host_engine import HostEngine
from kvfold.runtime.engine.protocol import EngineInfo, StepInputs
from kvfold.runtime.llm.llm import DEFAULT_TARGET, LLM
from kvfold.runtime.memory.budget import kv_cache_bytes
from kvfold.runtime.text.tokenizer import BundleTokenizer

if TYPE_CHECKING:
    from kvfold.runtime.runtime_config import RuntimeConfig

TEXT = " a"  # of the likeliest token

# How far below the largest logit those of some ranks are, at five positions of replies that SmolLM2-135M's
# `compact` bundle wrote: of 354 positions, by their entropy, the 10th, 30th, 50th, 70th and 90th of a hundred
# (0.1, 0.7, 2.0, 3.0 and 4.6 nats).
RANKS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 40000, 49152)
CURVES = (
    (0, 7.0, 7.5, 7.6, 8.4, 8.9, 10.3, 11.2, 12.1, 13.4, 14.4, 15.6, 17.5, 19.2, 21.4, 25.5, 39.9),
    (0, 2.3, 2.7, 5.4, 7.0, 8.6, 10.6, 11.5, 12.5, 13.8, 14.9, 15.9, 17.6, 19.1, 21.2, 25.0, 37.7),
    (0, 0.03, 1.7, 2.5, 4.6, 5.5, 6.9, 8.0, 9.1, 10.6, 11.8, 13.0, 14.7, 16.3, 18.2, 21.7, 35.3),
    (0, 1.5, 2.0, 2.2, 3.7, 4.2, 5.6, 6.6, 7.9, 9.9, 11.6, 13.5, 15.9, 17.7, 19.8, 23.7, 41.4),
    (0, 2.2, 2.6, 2.8, 3.2, 4.2, 5.1, 6.2, 7.0, 8.0, 8.9, 9.8, 11.1, 12.4, 14.0, 17.0, 29.6),
)


class ZeroCostEngine(HostEngine):
    """Gives each row the same logits, whatever it reads: a model's in shape, likeliest the same token."""

    def __init__(self, info: EngineInfo, token_id: int, rows: int, pause: float) -> None:
        """Logits of up to `rows` sequences a step, which takes `pause` seconds of no CPU."""
        super().__init__(info)
        self.pages = NoPages()
        self._pause = pause
        self._logits = shaped_logits(rows, info.vocab_size, token_id)

    def execute(self, step: StepInputs) -> np.ndarray:
        """Float32 [R, vocab_size], the same memory each time."""
        if self._pause:
            sleep(self._pause)
        return self._logits[: len(step.logits_indices)]


def shaped_logits(rows: int, vocab_size: int, likeliest: int) -> np.ndarray:
    """Float32 [rows, vocab_size], always the same: a curve of CURVES a row in turn, any ids behind one.

    Between the recorded ranks a curve is straight over the rank's logarithm.
    """
    rng = np.random.default_rng(0)
    ranks = np.log(np.arange(1, vocab_size + 1))
    curves = [-np.interp(ranks, np.log(RANKS), curve) for curve in CURVES]
    logits = np.empty((rows, vocab_size), np.float32)
    for number, row in enumerate(logits):
        ids = rng.permutation(vocab_size)
        row[np.append(likeliest, ids[ids != likeliest])] = curves[number % len(curves)]
    return logits


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
