"""How far two next-token distributions are apart, position by position, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Rows computed at once: 64 rows of a 50,000-token vocabulary in float64 are 26 MB.
BLOCK_ROWS = 64

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


def log_softmax(logits: np.ndarray) -> Float64:
    """Log-probabilities float64 [rows, vocab] of logits [rows, vocab]."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def measure_distance(reference: np.ndarray, candidate: np.ndarray) -> Distance:
    """Distance of two logits arrays [L, vocab].

    KL(p || q) = sum_i p_i (log p_i - log q_i) >= 0; identical logits give exactly 0.
    """
    kl, same, largest = [], [], 0.0
    for start in range(0, len(reference), BLOCK_ROWS):
        p, q = reference[start : start + BLOCK_ROWS], candidate[start : start + BLOCK_ROWS]
        log_p, log_q = log_softmax(p), log_softmax(q)
        kl.append((np.exp(log_p) * (log_p - log_q)).sum(axis=-1))
        same.append(p.argmax(axis=-1) == q.argmax(axis=-1))
        largest = max(largest, float(np.abs(p - q).max()))
    return Distance(np.maximum(np.concatenate(kl), 0.0), np.concatenate(same), largest)


def negative_log_likelihood(logits: np.ndarray, token_ids: np.ndarray) -> Float64:
    """-log p(next token) in nat, float64 [L - 1], of logits [L, vocab] over tokens [L]."""
    losses = []
    for start in range(0, len(token_ids) - 1, BLOCK_ROWS):
        targets = token_ids[start + 1 : start + BLOCK_ROWS + 1]
        log_p = log_softmax(logits[start : start + len(targets)])
        losses.append(-log_p[np.arange(len(targets)), targets])
    return np.concatenate(losses)
