"""Log probabilities of tokens, under the model's own distribution."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenLogprob:
    """Natural log probability of a token, and of the likeliest ones as (token id, value), likeliest first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
