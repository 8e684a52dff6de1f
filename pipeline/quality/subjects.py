"""Original, folded model and engine as subjects that give logits of a text.

They are polygraphy runners, `input_ids` [L] in, `logits` [L, vocab] and losses out, for validation, and
streams of logits for an evaluation, whose texts are too long to hold all of them.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata

from kvfold.pipeline.quality.logit_measures import negative_log_likelihood
from kvfold.pipeline.quality.subject_names import ENGINE, FOLDED, ORIGINAL
from kvfold.pipeline.workspace.read_checkpoint import read_checkpoint
from kvfold.pipeline.workspace.workspace import Workspace
from kvfold.plugins.contract.errors import ValidationError
from kvfold.plugins.contract.plan_presets import Preset, build_plan
from kvfold.runtime.engine.protocol import Engine
from kvfold.runtime.loop.engine_loop import EngineLoop
from kvfold.runtime.loop.read_logits import read_logits
from kvfold.runtime.memory.budget import pages_of_sequence
from kvfold.runtime.runtime_config import RuntimeConfig

if TYPE_CHECKING:
    from kvfold.export.model.decoder import Decoder

INPUT_IDS, LOGITS, LOSSES = "input_ids", "logits", "losses"
# A text is read as three turns that end here: each later one finds the earlier ones in the cache.
TURN_ENDS = (0.5, 0.75, 1.0)
# Streamed logits come in blocks that end at multiples of this, so that those of several subjects line up.
BLOCK_TOKENS = 512


class Subject(BaseRunner):  # type: ignore[misc]  # polygraphy has no annotations
    """Base of the subjects: metadata, timing, and the losses that perplexity is computed from."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.seconds = 0.0

    @abstractmethod
    def compute_logits(self, token_ids: np.ndarray) -> np.ndarray:
        """Logits float32 [L, vocab] of tokens int64 [L]."""

    def stream_logits(self, token_ids: np.ndarray, first: int = 0) -> Iterator[np.ndarray]:
        """Logits of the positions from `first` on, a block of rows after the other, cut as in `blocks`."""
        logits = self.compute_logits(token_ids)
        for rows in blocks(first, len(token_ids)):
            yield logits[rows]

    def get_input_metadata_impl(self) -> TensorMetadata:
        """One input of any length."""
        return TensorMetadata().add(INPUT_IDS, dtype=np.int64, shape=(None,))

    def infer_impl(self, feed_dict: Mapping[str, np.ndarray]) -> OrderedDict[str, np.ndarray]:
        """Logits and losses of one text; raises ValidationError where a logit is NaN or infinite."""
        token_ids = feed_dict[INPUT_IDS]
        start = time.perf_counter()
        logits = self.compute_logits(token_ids)
        self.inference_time = time.perf_counter() - start
        self.seconds += self.inference_time
        if not np.isfinite(logits).all():
            raise not_finite(self.name)
        losses = negative_log_likelihood(logits, token_ids)
        return OrderedDict({LOGITS: logits, LOSSES: losses})


class TorchSubject(Subject):
    """A decoder in PyTorch, in the type of its weights, whole sequences at once."""

    def __init__(self, name: str, decoder: Decoder) -> None:
        super().__init__(name)
        self._decoder = decoder

    def compute_logits(self, token_ids: np.ndarray) -> np.ndarray:
        """One forward pass."""
        return next(self._blocks(token_ids, [slice(0, len(token_ids))]))

    def stream_logits(self, token_ids: np.ndarray, first: int = 0) -> Iterator[np.ndarray]:
        """One pass below the head, then the head on a block at a time."""
        return self._blocks(token_ids, blocks(first, len(token_ids)))

    def _blocks(self, token_ids: np.ndarray, wanted: Iterable[slice]) -> Iterator[np.ndarray]:
        import torch

        from kvfold.export.model.dense_attention import DenseAttention

        decoder = self._decoder
        with torch.inference_mode():
            # The mixer holds the keys and values of all layers: it must not outlive the pass.
            hidden = decoder.model(
                torch.from_numpy(token_ids)[None], DenseAttention(decoder.config, decoder.plan)
            )[0]
        for rows in wanted:
            with torch.inference_mode():
                logits: np.ndarray = decoder.logits(hidden[rows]).float().numpy()
            yield logits


class EngineSubject(Subject):
    """The engine as it runs for users: paged and in chunks, through the runtime's loop.

    Args:
        name: of the subject.
        engine: built for the bundle.
        prefill_chunk: tokens per step.
    """

    def __init__(self, name: str, engine: Engine, prefill_chunk: int) -> None:
        super().__init__(name)
        self.reused_tokens = 0
        self._engine = engine
        self._config = RuntimeConfig(max_num_batched_tokens=prefill_chunk, max_num_seqs=1)

    def compute_logits(self, token_ids: np.ndarray) -> np.ndarray:
        """Three turns, each on the cache of the earlier ones."""
        loop = EngineLoop(self._engine, self._config)
        logits = np.empty((len(token_ids), self._engine.info.vocab_size), np.float32)
        begin = 0
        for share in TURN_ENDS:
            end = round(share * len(token_ids))
            for start, found in read_logits(loop, token_ids[:end], begin):
                logits[start : start + len(found)] = found
            begin = end
        self.reused_tokens += loop.metrics().cache.hit_tokens
        return logits

    def stream_logits(self, token_ids: np.ndarray, first: int = 0) -> Iterator[np.ndarray]:
        """One turn over an empty cache; what comes before `first` costs no logits."""
        steps = read_logits(EngineLoop(self._engine, self._config), token_ids, first)
        rest = np.empty((0, self._engine.info.vocab_size), np.float32)
        for rows in blocks(first, len(token_ids)):
            parts = [rest]
            while sum(map(len, parts)) < rows.stop - rows.start:
                parts.append(next(steps)[1])
            whole = parts[1] if len(rest) == 0 and len(parts) == 2 else np.concatenate(parts)
            rest = whole[rows.stop - rows.start :]
            yield whole[: rows.stop - rows.start]


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


def load_subjects(
    workspace: Workspace, longest: int, prefill_chunk: int
) -> tuple[TorchSubject, TorchSubject, EngineSubject]:
    """Original, folded model and the engine of the recipe's target, for texts of up to `longest` tokens.

    Raises:
        KvfoldError: the bundle's weights or its engine cannot be loaded.
    """
    from kvfold.export.model.decoder import Decoder
    from kvfold.runtime.engine.engine_files import EngineFiles
    from kvfold.runtime.engine.load_engine import load_engine
    from kvfold.runtime.engine.slabs import bytes_of_slabs

    config, plan = workspace.config, workspace.plan
    pages = pages_of_sequence(plan, longest, prefill_chunk)
    files = EngineFiles.read(workspace.root / "engine" / workspace.recipe.target, plan)
    budget = bytes_of_slabs(plan, pages, files.slab_pages)
    engine = load_engine(files, budget, max_num_batched_tokens=prefill_chunk, max_num_seqs=1)
    return (
        TorchSubject(ORIGINAL, original_decoder(workspace)),
        TorchSubject(FOLDED, Decoder.from_weights(config, plan, workspace.weights)),
        EngineSubject(ENGINE, engine, prefill_chunk),
    )


def original_decoder(workspace: Workspace) -> Decoder:
    """The unfolded model."""
    from kvfold.export.model.decoder import Decoder

    identity = build_plan(Preset(preset="identity"), workspace.config.attention_shape)
    return Decoder.from_weights(workspace.config, identity, read_checkpoint(workspace).weights)
