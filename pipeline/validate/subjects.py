"""The three subjects as polygraphy runners: `input_ids` [L] in, `logits` [L, vocab] and losses out."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata

from pipeline.validate.metrics import negative_log_likelihood
from runtime.engine.protocol import Engine
from runtime.memory.kv_memory import KvMemory, Prefix
from runtime.memory.sequence import Sequence
from runtime.scheduler.step_builder import Chunk, StepBuilder

if TYPE_CHECKING:
    from export.model.decoder import Decoder

INPUT_IDS, LOGITS, LOSSES = "input_ids", "logits", "losses"
# A text is read as three turns that end here: each later one finds the earlier ones in the cache.
TURN_ENDS = (0.5, 0.75, 1.0)


class Subject(BaseRunner):  # type: ignore[misc]  # polygraphy has no annotations
    """Base of the subjects: metadata, timing, and the losses that perplexity is computed from."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.seconds = 0.0

    @abstractmethod
    def compute_logits(self, token_ids: np.ndarray) -> np.ndarray:
        """Logits float32 [L, vocab] of tokens int64 [L]."""

    def get_input_metadata_impl(self) -> TensorMetadata:
        """One input of any length."""
        return TensorMetadata().add(INPUT_IDS, dtype=np.int64, shape=(None,))

    def infer_impl(self, feed_dict: Mapping[str, np.ndarray]) -> OrderedDict[str, np.ndarray]:
        """Logits and losses of one text."""
        token_ids = feed_dict[INPUT_IDS]
        start = time.perf_counter()
        logits = self.compute_logits(token_ids)
        self.inference_time = time.perf_counter() - start
        self.seconds += self.inference_time
        losses = negative_log_likelihood(logits, token_ids)
        return OrderedDict({LOGITS: logits, LOSSES: losses})


class TorchSubject(Subject):
    """A decoder in PyTorch, float32, whole sequences at once."""

    def __init__(self, name: str, decoder: Decoder) -> None:
        super().__init__(name)
        self._decoder = decoder

    def compute_logits(self, token_ids: np.ndarray) -> np.ndarray:
        """One forward pass."""
        import torch

        with torch.inference_mode():
            logits: np.ndarray = self._decoder(torch.from_numpy(token_ids)[None])[0].numpy()
        return logits


class EngineSubject(Subject):
    """The engine as it runs for users: paged, in chunks, later turns on the cache of earlier ones.

    Args:
        name: of the subject.
        engine: built for the bundle.
        prefill_chunk: tokens per step.
    """

    def __init__(self, name: str, engine: Engine, prefill_chunk: int) -> None:
        super().__init__(name)
        self.reused_tokens = 0
        self._engine = engine
        self._chunk = prefill_chunk
        info = engine.info
        self._builder = StepBuilder(
            [group.name for group in info.plan.groups],
            info.plan.page_size,
            max_tokens=prefill_chunk,
            max_seqs=1,
            max_pages=-(-info.max_context_length // info.plan.page_size),
        )

    def compute_logits(self, token_ids: np.ndarray) -> np.ndarray:
        """Three turns over an empty cache; a position computed twice keeps its later logits."""
        memory = KvMemory(self._engine.info)
        logits = np.empty((len(token_ids), self._engine.info.vocab_size), np.float32)
        for share in TURN_ENDS:
            end = round(share * len(token_ids))
            sequence = memory.begin(token_ids[:end], end, Prefix(prompt_length=end))
            self.reused_tokens += sequence.hit_tokens
            self._run_turn(memory, sequence, end, logits)
            memory.release(sequence)
        return logits

    def _run_turn(self, memory: KvMemory, sequence: Sequence, end: int, logits: np.ndarray) -> None:
        for start in range(sequence.num_computed, end, self._chunk):
            stop = min(start + self._chunk, end)
            allocated = memory.allocate(sequence, stop)
            assert allocated, "the pools hold a whole context"
            step = self._builder.build([Chunk(sequence, start, stop, samples=True)])
            every_row = replace(step, logits_indices=np.arange(stop - start))
            logits[start:stop] = self._engine.execute(every_row)
            memory.commit(sequence, stop)
