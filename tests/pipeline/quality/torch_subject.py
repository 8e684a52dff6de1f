"""A whole decoder as a subject: what a model that is read layer by layer is held against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from kvfold.export.model.decoder import Decoder
from kvfold.export.model.dense_attention import DenseAttention
from kvfold.pipeline.quality.subjects import Subject, blocks


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
