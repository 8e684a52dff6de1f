"""Sampling as every backend implements it: rows of logits become tokens.

Every row is treated alone: its result never depends on what else is in the batch. In this order:

    mask, bans     a token that is not allowed, or banned, gets -inf
    bias           x += value
    repetition     a token seen in prompt or reply: x / penalty where x > 0, else x * penalty
    frequency      x -= penalty * count, the count of the token in the reply
    presence       x -= penalty, where that count is above 0
    temperature    0: the token with the largest x, of equal ones the first. Else
                   w = exp((x - max x) / temperature)
    top_k          the k tokens with the largest x, of equal ones the first
    top_p          the smallest set of the largest x, of equal ones the first, with at least this share of
                   the sum of w; from here on tokens are in that order, likeliest first
    min_p          tokens with w of at least this times the largest w
    draw           the first token at which the running sum of w, in float64, passes draw * sum of w;
                   tokens are in the order of their ids, or in that of top_p

Repetition is that of arXiv 1909.05858; frequency and presence are OpenAI's, as its API reference defines them
(mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence); that they come in this order, after the
bias, is vLLM's.

Log probabilities are those of the model: log softmax of the logits as they came, before all of the above.
The likeliest tokens have the largest logits, in falling order, of equal ones the first.

x and w are float32, sums float64. A row with a NaN, or whose largest x is infinite, has no token, nor has one
in which nothing is allowed; no other row is the worse for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np


class Status(IntEnum):
    """What became of a row."""

    SAMPLED = 0
    NOT_FINITE = 1  # a NaN among its logits, or the largest of them is infinite
    NOTHING_ALLOWED = 2  # mask and bans leave no token


def _no_ids() -> np.ndarray:
    return np.empty(0, np.int32)


def _no_values() -> np.ndarray:
    return np.empty(0, np.float32)


@dataclass(frozen=True)
class SamplingRow:
    """How one row of V logits is sampled; ids are in [0, V), each once in an array.

    Attributes:
        temperature: 0 is greedy.
        top_k: 0 is off.
        top_p: 1 is off.
        min_p: 0 is off.
        repetition_penalty: 1 is off.
        frequency_penalty: 0 is off.
        presence_penalty: 0 is off.
        draw: uniform in [0, 1), float64.
        likely: how many likeliest tokens to tell with their log probabilities; None tells none, nor the
            log probability of the sampled token.
        mask: uint32 [ceil(V / 32)]; bit i % 32 of word i / 32 is set where token i is allowed;
            None allows all.
        bias_ids, bias_values: int32 and float32 [n].
        seen_ids, seen_counts: int32 [n]: tokens of prompt and reply, and how often each is in the reply.
        banned_ids: int32 [n].
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    draw: float = 0.0
    likely: int | None = None
    mask: np.ndarray | None = None
    bias_ids: np.ndarray = field(default_factory=_no_ids)
    bias_values: np.ndarray = field(default_factory=_no_values)
    seen_ids: np.ndarray = field(default_factory=_no_ids)
    seen_counts: np.ndarray = field(default_factory=_no_ids)
    banned_ids: np.ndarray = field(default_factory=_no_ids)


@dataclass(frozen=True)
class Outcome:
    """What became of one row.

    Attributes:
        status: without SAMPLED the rest says nothing.
        token: its id.
        logprob: its natural log probability, if asked for.
        likely: (id, log probability) of the likeliest tokens, likeliest first.
    """

    status: Status
    token: int = -1
    logprob: float | None = None
    likely: tuple[tuple[int, float], ...] = ()
