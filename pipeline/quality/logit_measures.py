"""What is measured of logits, position by position, in float64: distances of two, and -log p of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Rows computed at once: 8 rows of a 50,000-token vocabulary in float64 are 3 MB and stay in the cache.
BLOCK_ROWS = 8

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Distance:
    """Per position of L logits rows.

    Attributes:
        kl: KL(reference || candidate) in nat, float64 [L].
        same_top1: whether both think the same token likeliest, bool [L].
        max_logit_difference: the largest |reference - candidate| of all logits.
    """

    kl: Float64
    same_top1: NDArray[np.bool_]
    max_logit_difference: float


def measure_distance(reference: np.ndarray, candidate: np.ndarray) -> Distance:
    """Distance of two logits arrays [L, vocab].

    With logits x, y shifted to a maximum of 0 and Z the sum of their exponentials:
    KL(p || q) = sum_i e^x_i (x_i - y_i) / Z_x - log Z_x + log Z_y, exactly 0 where x = y.
    """
    kl, same, largest = [], [], 0.0
    for start in range(0, len(reference), BLOCK_ROWS):
        p, q = reference[start : start + BLOCK_ROWS], candidate[start : start + BLOCK_ROWS]
        x, y = _shift(p), _shift(q)
        weights = np.exp(x)
        total = weights.sum(axis=-1)
        cross = np.einsum("rv,rv->r", weights, x - y) / total
        kl.append(cross - np.log(total) + np.log(np.exp(y).sum(axis=-1)))
        same.append(p.argmax(axis=-1) == q.argmax(axis=-1))
        largest = max(largest, float(np.abs(p - q).max()))
    # Rounding can leave a divergence just below its bound of 0.
    return Distance(np.maximum(np.concatenate(kl), 0.0), np.concatenate(same), largest)


def negative_log_likelihood(logits: np.ndarray, token_ids: np.ndarray) -> Float64:
    """-log p(next token) in nat, float64 [L - 1], of logits [L, vocab] over tokens [L]."""
    losses = [np.empty(0)]
    for start in range(0, len(token_ids) - 1, BLOCK_ROWS):
        targets = token_ids[start + 1 : start + BLOCK_ROWS + 1]
        shifted = _shift(logits[start : start + len(targets)])
        chosen = shifted[np.arange(len(targets)), targets]
        losses.append(np.log(np.exp(shifted).sum(axis=-1)) - chosen)
    return np.concatenate(losses)


def _shift(logits: np.ndarray) -> Float64:
    """Logits in float64 whose largest of each row is 0, so that no exponential overflows."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    return shifted
