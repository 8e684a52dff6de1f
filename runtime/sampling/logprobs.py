"""Log probabilities of sampled tokens, under the model's own distribution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvfold.runtime.sampling.sampler import largest


@dataclass(frozen=True)
class TokenLogprob:
    """Natural log probability of a sampled token, and of the likeliest ones as (token id, value)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def token_logprob(logits: np.ndarray, token_id: int, top: int) -> TokenLogprob:
    """Log probability of a token under softmax(logits), with the `top` likeliest tokens in order."""
    shifted = logits.astype(np.float64) - float(logits.max())
    logprobs = shifted - np.log(np.exp(shifted).sum())
    top = min(top, len(logits))
    likeliest = largest(logits, top) if top else np.empty(0, np.int64)
    likeliest = likeliest[np.argsort(-logprobs[likeliest], kind="stable")]
    return TokenLogprob(
        token_id, float(logprobs[token_id]), tuple((int(i), float(logprobs[i])) for i in likeliest)
    )


def log_probabilities(logits: np.ndarray, token_ids: np.ndarray) -> np.ndarray:
    """Float64 [R]: of each row's token under softmax(logits), float32 [R, vocab]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    found: np.ndarray = shifted[np.arange(len(token_ids)), token_ids] - np.log(np.exp(shifted).sum(axis=1))
    return found
