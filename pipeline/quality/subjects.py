"""Original, folded model and engine as subjects that give logits of a text, a block of rows after the other.

For validation they are polygraphy runners: a text and a block's first row in, its logits and losses out.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata

from kvfold.pipeline.quality.logit_measures import negative_log_likelihood
from kvfold.plugins.contract.errors import ValidationError
from kvfold.runtime.engine.protocol import Engine
from kvfold.runtime.loop.engine_loop import EngineLoop
from kvfold.runtime.loop.read_logits import read_logits
from kvfold.runtime.runtime_config import RuntimeConfig

INPUT_IDS, FIRST, LOGITS, LOSSES = "input_ids", "first", "logits", "losses"
# A text is read as three turns that end here: each later one finds the earlier ones in the cache.
TURN_ENDS = (0.5, 0.75, 1.0)
# Streamed logits come in blocks that end at multiples of this, so that those of several subjects line up.
BLOCK_TOKENS = 96  # 58 MB of logits a subject, of 151,936 tokens


# Told of work that is done: so many tokens.
Tick = Callable[[float], None]


class Subject(BaseRunner):  # type: ignore[misc]  # polygraphy has no annotations
    """Base of the subjects: metadata, timing, and the losses that perplexity is computed from.

    Attributes:
        left: share of a text's work that `stream_logits` does; the rest is that of `read_ahead`.
    """

    left = 1.0

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.seconds = 0.0
        self._turns: Iterator[np.ndarray] = iter(())

    @abstractmethod
    def compute_logits(self, token_ids: np.ndarray) -> np.ndarray:
        """Logits float32 [L, vocab] of tokens int64 [L]."""

    def read_ahead(self, texts: Sequence[np.ndarray], tick: Tick) -> None:
        """Be told which texts come next, as a model that is read layer by layer reads them together."""

    def stream_logits(self, token_ids: np.ndarray, first: int = 0) -> Iterator[np.ndarray]:
        """Logits of the positions from `first` on, a block of rows after the other, cut as in `blocks`."""
        logits = self.compute_logits(token_ids)
        for rows in blocks(first, len(token_ids)):
            yield logits[rows]

    def stream_turns(self, token_ids: np.ndarray) -> Iterator[np.ndarray]:
        """The same of the whole text, as it is read in validation."""
        return self.stream_logits(token_ids)

    def get_input_metadata_impl(self) -> TensorMetadata:
        """A text of any length, and the first row of the block that is asked for."""
        metadata = TensorMetadata().add(INPUT_IDS, dtype=np.int64, shape=(None,))
        return metadata.add(FIRST, dtype=np.int64, shape=())

    def infer_impl(self, feed_dict: Mapping[str, np.ndarray]) -> OrderedDict[str, np.ndarray]:
        """Logits and losses of a text's next block; raises ValidationError for a logit that is no number."""
        token_ids, first = feed_dict[INPUT_IDS], int(feed_dict[FIRST])
        start = time.perf_counter()
        if first == 0:
            self._turns = self.stream_turns(token_ids)
        logits = next(self._turns)
        if first + len(logits) == len(token_ids):
            next(self._turns, None)  # lets it end
        self.inference_time = time.perf_counter() - start
        self.seconds += self.inference_time
        if not np.isfinite(logits).all():
            raise not_finite(self.name)
        # One token more than rows, whose own loss a block does not know.
        losses = negative_log_likelihood(logits, token_ids[first : first + len(logits) + 1])
        return OrderedDict({LOGITS: logits, LOSSES: losses})


class EngineSubject(Subject):
    """The engine as it runs for users: paged and in chunks, through the runtime's loop.

    Args:
        name: of the subject.
        engine: built for the bundle.
        prefill_chunk: tokens per step at most; never more than a block, whose logits a step gives at once.
    """

    def __init__(self, name: str, engine: Engine, prefill_chunk: int) -> None:
        super().__init__(name)
        self.reused_tokens = 0
        self._engine = engine
        tokens = min(prefill_chunk, BLOCK_TOKENS)
        self._config = RuntimeConfig(max_num_batched_tokens=tokens, max_num_seqs=1)

    def compute_logits(self, token_ids: np.ndarray) -> np.ndarray:
        """Three turns, each on the cache of the earlier ones."""
        return np.concatenate(list(self.stream_turns(token_ids)))

    def stream_turns(self, token_ids: np.ndarray) -> Iterator[np.ndarray]:
        """Three turns, each on the cache of the earlier ones."""
        loop = EngineLoop(self._engine, self._config)
        ends = [round(share * len(token_ids)) for share in TURN_ENDS]
        steps = (
            found
            for begin, end in pairwise([0, *ends])
            for _, found in read_logits(loop, token_ids[:end], begin)
        )
        yield from self._cut(steps, 0, len(token_ids))
        self.reused_tokens += loop.metrics().cache.hit_tokens

    def stream_logits(self, token_ids: np.ndarray, first: int = 0) -> Iterator[np.ndarray]:
        """One turn over an empty cache; what comes before `first` costs no logits."""
        steps = read_logits(EngineLoop(self._engine, self._config), token_ids, first)
        return self._cut((found for _, found in steps), first, len(token_ids))

    def _cut(self, steps: Iterator[np.ndarray], first: int, length: int) -> Iterator[np.ndarray]:
        """The rows of an engine's steps in blocks."""
        rest = np.empty((0, self._engine.info.vocab_size), np.float32)
        for rows in blocks(first, length):
            parts = [rest]
            while sum(map(len, parts)) < rows.stop - rows.start:
                parts.append(next(steps))
            parts = [part for part in parts if len(part)]
            whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
            rest = whole[rows.stop - rows.start :]
            yield whole[: rows.stop - rows.start]
            del whole, parts  # before the next ones are there


def not_finite(name: str) -> ValidationError:
    """What to raise where a subject's logits are NaN or infinite."""
    return ValidationError(
        f"logits of the subject {name} are NaN or infinite; check the checkpoint, then calibration"
    )


def blocks(first: int, length: int) -> Iterator[slice]:
    """Positions [first, length) in blocks that end at multiples of BLOCK_TOKENS."""
    while first < length:
        stop = min(length, (first // BLOCK_TOKENS + 1) * BLOCK_TOKENS)
        yield slice(first, stop)
        first = stop
