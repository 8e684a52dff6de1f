"""A subject that finds what was said before: it copies what followed the longest repetition it can see."""

from __future__ import annotations

import numpy as np

from kvfold.pipeline.quality.subjects import Subject


class CopyingSubject(Subject):
    """Says what followed the longest earlier match of the last tokens, within its window.

    It knows nothing of the tasks, so solving one proves that the prompt holds the answer and asks for it
    unmistakably; with a window it is a model whose caches lost everything older.
    """

    def __init__(self, name: str, vocab_size: int, window: int | None = None) -> None:
        super().__init__(name)
        self._vocab_size = vocab_size
        self._window = window

    def compute_logits(self, token_ids: np.ndarray) -> np.ndarray:
        """One-hot logits of the copied token."""
        logits = np.zeros((len(token_ids), self._vocab_size), np.float32)
        matches = np.zeros(
            len(token_ids), np.int64
        )  # length of the match that ends there, for the last token
        for position, token in enumerate(token_ids):
            # matches[i] becomes 1 + that of i - 1 where token i is this one: common suffixes, extended.
            same = token_ids[:position] == token
            extended = np.where(
                same, np.concatenate([[0], matches[: max(0, position - 1)]])[:position] + 1, 0
            )
            oldest = 0 if self._window is None else max(0, position + 1 - self._window)
            lengths = np.minimum(
                extended, np.arange(position) + 1 - oldest
            )  # what left the window is unknown
            if position and lengths.max() > 0:
                best = position - 1 - int(lengths[::-1].argmax())  # of equal matches the latest
                logits[position, token_ids[best + 1]] = 20.0
            matches[:position], matches[position] = extended, position + 1
        return logits
