"""SamplingParams: how one request is sampled and when it stops."""

from __future__ import annotations

from dataclasses import dataclass

from kvfold.plugins.contract.errors import RequestError
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
