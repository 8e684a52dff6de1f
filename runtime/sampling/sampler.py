"""Sampler: a row of logits becomes a token, by the parameters of one request.

Every row is treated alone and every request has its own generator, so a request's tokens never
depend on what else is in the batch. Order: repetition penalty, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import numpy as np

from kvfold.plugins.contract.errors import KvfoldError
from kvfold.runtime.sampling.params import SamplingParams

DRAW_BLOCK = 256


class Sampler:
    """Samples for one request; one draw of its generator a token, so a preempted request goes on alike."""

    def __init__(self, params: SamplingParams) -> None:
        """A fresh generator of the request's seed."""
        self._params = params
        self._generator = None if params.temperature == 0 else np.random.default_rng(params.seed)

    def sample(self, logits: np.ndarray, seen: np.ndarray) -> int:
        """The next token.

        Args:
            logits: float32 [vocab], left as it is.
            seen: int64, the tokens of prompt and reply so far.

        Raises:
            KvfoldError: the engine returned NaN or infinite logits.
        """
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            raise KvfoldError(
                f"the engine returned {logits[best]} as a logit; run `kvfold validate` on this bundle"
            )
        if self._params.is_greedy:
            return best
        if self._params.repetition_penalty != 1:
            logits = penalize(logits, seen, self._params.repetition_penalty)
        if self._generator is None:
            return int(logits.argmax())
        ids, weights = candidates(logits, self._params)
        return int(ids[draw(weights, self._generator.random())])


def draw(weights: np.ndarray, share: float) -> int:
    """The index at which the cumulative weights pass a share in [0, 1) of their sum, in float64.

    Sums of blocks say in which block that is, so that only this one is added up weight by weight: over a
    vocabulary of 49,152 a tenth of the time.
    """
    sums = np.add.reduceat(weights, np.arange(0, len(weights), DRAW_BLOCK), dtype=np.float64)
    ends = sums.cumsum()
    wanted = share * ends[-1]
    block = min(int(ends.searchsorted(wanted, side="right")), len(ends) - 1)
    inside = weights[block * DRAW_BLOCK : (block + 1) * DRAW_BLOCK].cumsum(dtype=np.float64)
    wanted -= ends[block - 1] if block else 0.0
    # Rounding may leave a little more than the block has: then its last weight above 0 is meant.
    wanted = min(wanted, np.nextafter(inside[-1], 0))
    return block * DRAW_BLOCK + int(inside.searchsorted(wanted, side="right"))


def penalize(logits: np.ndarray, seen: np.ndarray, penalty: float) -> np.ndarray:
    """A copy of the logits with the tokens already seen made less likely."""
    result = logits.copy()
    ids = np.unique(seen)
    result[ids] = np.where(result[ids] > 0, result[ids] / penalty, result[ids] * penalty)
    return result


def candidates(logits: np.ndarray, params: SamplingParams) -> tuple[np.ndarray, np.ndarray]:
    """Token ids that survive the filters, and their weights (float32, not normalised)."""
    ids = np.arange(len(logits)) if params.top_k == 0 else largest(logits, params.top_k)
    scaled = (logits[ids] if params.top_k else logits) - logits.max()
    scaled /= np.float32(params.temperature)
    weights = np.exp(scaled, out=scaled)
    if params.top_p < 1:
        kept = nucleus(weights, params.top_p)
        ids, weights = ids[kept], weights[kept]
    if params.min_p > 0:
        kept = np.flatnonzero(weights >= params.min_p * weights.max())
        ids, weights = ids[kept], weights[kept]
    return ids, weights


def largest(logits: np.ndarray, count: int) -> np.ndarray:
    """Ids of the `count` largest logits, growing; of equal ones the first."""
    if count >= len(logits):
        return np.arange(len(logits))
    smallest = np.partition(logits, -count)[-count]
    above = np.flatnonzero(logits > smallest)
    equal = np.flatnonzero(logits == smallest)[: count - len(above)]
    return np.sort(np.concatenate([above, equal]))


def nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """Indices of the smallest set of largest weights with at least `top_p` of the mass.

    Only weights of at least (1 - top_p) * mass / n are sorted: all smaller ones together have less
    than 1 - top_p of the mass, so none of them can belong to the set.
    """
    mass = weights.sum(dtype=np.float64)
    large = np.flatnonzero(weights >= (1 - top_p) * mass / len(weights))
    order = large[np.argsort(-weights[large], kind="stable")]
    count = int(weights[order].cumsum(dtype=np.float64).searchsorted(top_p * mass)) + 1
    return order[:count]
