"""NumPy reference of sampling: the rules of `schema.py`, one row at a time."""

from __future__ import annotations

import numpy as np

from kvfold.plugins.sampling.schema import Outcome, SamplingRow, Status

DRAW_BLOCK = 256


def sample(logits: np.ndarray, row: SamplingRow) -> Outcome:
    """Sample a token from float32 logits [V], which stay as they are."""
    if not np.isfinite(logits.max()):
        return Outcome(Status.NOT_FINITE)
    edited = edit(logits, row)
    largest_logit = edited.max()
    if not np.isfinite(largest_logit):
        return Outcome(Status.NOTHING_ALLOWED if largest_logit == -np.inf else Status.NOT_FINITE)
    if row.temperature == 0:
        token = int(edited.argmax())
    else:
        ids, weights = candidates(edited, row)
        token = int(ids[draw(weights, row.draw)])
    if row.likely is None:
        return Outcome(Status.SAMPLED, token)
    return score(logits, token, row.likely)


def score(logits: np.ndarray, token: int, likely: int) -> Outcome:
    """The log probability of a token under softmax(logits), and the likeliest tokens with theirs."""
    if not np.isfinite(logits.max()):
        return Outcome(Status.NOT_FINITE)
    shifted = logits.astype(np.float64) - float(logits.max())
    logprobs = shifted - np.log(np.exp(shifted).sum())
    ids = largest(logits, likely) if likely else np.empty(0, np.int64)
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    likeliest = tuple(zip(ids.tolist(), logprobs[ids].tolist(), strict=True))
    return Outcome(Status.SAMPLED, token, float(logprobs[token]), likeliest)


def edit(logits: np.ndarray, row: SamplingRow) -> np.ndarray:
    """A copy of the logits under mask, bias, penalties and bans."""
    x = logits.copy()
    if row.mask is not None:
        bits = np.unpackbits(row.mask.view(np.uint8), count=len(x), bitorder="little")
        x[bits == 0] = -np.inf
    x[row.bias_ids] += row.bias_values
    x[row.seen_ids] = penalize(x[row.seen_ids], row)
    x[row.banned_ids] = -np.inf
    return x


def penalize(seen: np.ndarray, row: SamplingRow) -> np.ndarray:
    """Logits of the tokens already seen, made less likely."""
    repetition, frequency, presence = (
        np.float32(penalty)
        for penalty in (row.repetition_penalty, row.frequency_penalty, row.presence_penalty)
    )
    counts = row.seen_counts.astype(np.float32)
    with np.errstate(over="ignore", divide="ignore"):
        x: np.ndarray = np.where(seen > 0, seen / repetition, seen * repetition)
    x -= frequency * counts
    x -= presence * (counts > 0)
    return x


def candidates(x: np.ndarray, row: SamplingRow) -> tuple[np.ndarray, np.ndarray]:
    """Token ids that survive the filters, and their weights (float32, not normalised)."""
    ids = largest(x, row.top_k) if row.top_k else np.arange(len(x))
    weights = np.exp((x[ids] - x.max()) / np.float32(row.temperature))
    if row.top_p < 1:
        kept = nucleus(x[ids], weights, row.top_p)
        ids, weights = ids[kept], weights[kept]
    if row.min_p > 0:
        kept = np.flatnonzero(weights >= np.float32(row.min_p) * weights.max())
        ids, weights = ids[kept], weights[kept]
    return ids, weights


def largest(x: np.ndarray, count: int) -> np.ndarray:
    """Ids of the `count` largest logits, growing; of equal ones the first."""
    if count >= len(x):
        return np.arange(len(x))
    smallest = np.partition(x, -count)[-count]
    above = np.flatnonzero(x > smallest)
    equal = np.flatnonzero(x == smallest)[: count - len(above)]
    return np.sort(np.concatenate([above, equal]))


def nucleus(x: np.ndarray, weights: np.ndarray, top_p: float) -> np.ndarray:
    """Indices of the smallest set of largest logits with at least `top_p` of the weights' sum."""
    order = np.argsort(-x, kind="stable")
    running = weights[order].cumsum(dtype=np.float64)
    return order[: int(running.searchsorted(top_p * running[-1])) + 1]


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
