"""Sampling: a row of logits becomes a token, by the parameters of one request.

Every row is treated alone and every request has its own generator, so a request's tokens never
depend on what else is in the batch. Order: repetition penalty, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvfold.plugins.contract.errors import KvfoldError, RequestError
from kvfold.runtime.checks import check_integer, check_number


@dataclass(frozen=True)
class SamplingParams:
    """How a request is sampled and when it stops.

    Attributes:
        temperature: 0 is greedy; else logits are divided by it, 0.001 to 100.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the smallest set of likeliest tokens with at least this mass; 1 keeps all.
        min_p: drop tokens less likely than this times the likeliest one; 0 keeps all.
        repetition_penalty: tokens already seen, prompt included, have positive logits divided and
            negative ones multiplied by it (arXiv 1909.05858); 1 is off.
        seed: same seed, same result; None draws one from the system.
        max_tokens: tokens to generate at most.
        stop: texts that end the reply; they are not part of it.
        logprobs: also report the log probability of each token and of this many likeliest ones,
            under the model's own distribution (before penalty and temperature); None reports nothing.
        ignore_eos: carry on after an end-of-sequence token.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of range; raises RequestError."""
        check_number("temperature", self.temperature, 0, 100)
        if 0 < self.temperature < 1e-3:
            raise RequestError(f"temperature is {self.temperature}; use 0 for greedy, else at least 0.001")
        check_integer("top_k", self.top_k, 0)
        check_number("top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            raise RequestError("top_p is 0; use a number above 0, or temperature=0 for the likeliest token")
        check_number("min_p", self.min_p, 0, 1)
        check_number("repetition_penalty", self.repetition_penalty, 0)
        if self.repetition_penalty == 0:
            raise RequestError("repetition_penalty is 0; use 1 for none, more to penalise")
        if self.seed is not None:
            check_integer("seed", self.seed, 0)
        check_integer("max_tokens", self.max_tokens, 1)
        if self.logprobs is not None:
            check_integer("logprobs", self.logprobs, 0)
        if not isinstance(self.stop, tuple) or not all(isinstance(s, str) and s for s in self.stop):
            raise RequestError(f"stop is {self.stop!r}; use a tuple of non-empty strings, such as ('\\n',)")

    @property
    def is_greedy(self) -> bool:
        """Whether the result is the likeliest token of the untouched logits."""
        return self.temperature == 0 and self.repetition_penalty == 1


@dataclass(frozen=True)
class TokenLogprob:
    """Natural log probability of a sampled token, and of the likeliest ones as (token id, value)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


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
        cumulative = weights.cumsum(dtype=np.float64)
        drawn = cumulative.searchsorted(self._generator.random() * cumulative[-1], side="right")
        return int(ids[min(int(drawn), len(ids) - 1)])


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
