"""A context and the answer that should follow it, as tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Question:
    """Token ids int64 [L] whose last ones, from `answer` on, are the answer."""

    token_ids: np.ndarray
    answer: int


def make_question(encode: Callable[[str], list[int]], context: str, answer: str) -> Question:
    """A question whose tokens are those of the joined text.

    Where a token reaches over the border, it counts to the answer; at least one token is context.
    """
    whole, before = encode(context + answer), encode(context)
    shared = 0
    while shared < min(len(before), len(whole) - 1) and before[shared] == whole[shared]:
        shared += 1
    return Question(np.array(whole, np.int64), max(1, shared))
