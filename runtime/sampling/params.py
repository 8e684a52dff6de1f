"""SamplingParams: how one request is sampled and when it stops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.checks import check_integer, check_number

MAX_LOGIT_BIASES = 1024


@dataclass(frozen=True)
class SamplingParams:
    """How a request is sampled and when it stops.

    Attributes:
        temperature: 0 is greedy; else logits are divided by it, 0.001 to 100.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the smallest set of likeliest tokens with at least this mass; 1 keeps all.
        min_p: drop tokens less likely than this times the likeliest one; 0 keeps all.
        repetition_penalty: tokens already seen, prompt included, have positive logits divided and
            negative ones multiplied by it (arXiv 1909.05858), 0.01 to 100; 1 is off.
        frequency_penalty: taken from a token's logit for each time that the reply has it, -2 to 2.
        presence_penalty: taken once from the logit of each token that the reply has, -2 to 2.
        logit_bias: added to the logits of these token ids, -100 to 100; at most 1,024.
        seed: same seed, same result; None draws one from the system.
        max_tokens: tokens to generate at most; 0, with prompt_logprobs, only scores the prompt.
        min_tokens: tokens before the reply may have an end-of-sequence token or one of stop_token_ids.
        stop: texts that end the reply; they are not part of it.
        stop_token_ids: tokens that end the reply as an end-of-sequence token does, in spite of ignore_eos.
        logprobs: also report the log probability of each token and of this many likeliest ones,
            under the model's own distribution (before mask, bias, penalties and temperature); None
            reports nothing.
        prompt_logprobs: the same of the prompt's tokens.
        ignore_eos: carry on after an end-of-sequence token.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    seed: int | None = None
    max_tokens: int = 256
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of range; raises RequestError."""
        self._check_distribution()
        self._check_biases()
        self._check_length()
        if self.seed is not None:
            check_integer("seed", self.seed, 0)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 0)
        if not isinstance(self.stop, tuple) or not all(isinstance(s, str) and s for s in self.stop):
            raise RequestError(f"stop is {self.stop!r}; use a tuple of non-empty strings, such as ('\\n',)")
        if not isinstance(self.stop_token_ids, tuple):
            raise RequestError(f"stop_token_ids is {self.stop_token_ids!r}; use a tuple of token ids")
        for token_id in self.stop_token_ids:
            check_integer("a token id of stop_token_ids", token_id, 0)

    def _check_distribution(self) -> None:
        check_number("temperature", self.temperature, 0, 100)
        if 0 < self.temperature < 1e-3:
            raise RequestError(f"temperature is {self.temperature}; use 0 for greedy, else at least 0.001")
        check_integer("top_k", self.top_k, 0)
        check_number("top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            raise RequestError("top_p is 0; use a number above 0, or temperature=0 for the likeliest token")
        check_number("min_p", self.min_p, 0, 1)
        check_number("repetition_penalty", self.repetition_penalty, 0.01, 100)
        check_number("frequency_penalty", self.frequency_penalty, -2, 2)
        check_number("presence_penalty", self.presence_penalty, -2, 2)

    def _check_biases(self) -> None:
        if not isinstance(self.logit_bias, Mapping):
            raise RequestError(
                f"logit_bias is {self.logit_bias!r}; use numbers by token id, such as {{7: -100}}"
            )
        if len(self.logit_bias) > MAX_LOGIT_BIASES:
            raise RequestError(
                f"logit_bias has {len(self.logit_bias)} tokens; use at most {MAX_LOGIT_BIASES}"
            )
        for token_id, bias in self.logit_bias.items():
            check_integer("a token id of logit_bias", token_id, 0)
            check_number(f"logit_bias of token {token_id}", bias, -100, 100)
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))

    def _check_length(self) -> None:
        check_integer("max_tokens", self.max_tokens, 0)
        if self.max_tokens == 0 and self.prompt_logprobs is None:
            raise RequestError(
                "max_tokens is 0; use at least 1, or ask for prompt_logprobs to score the prompt alone"
            )
        check_integer("min_tokens", self.min_tokens, 0)
        if self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens is {self.min_tokens}, more than max_tokens, {self.max_tokens}; "
                "use at most as many"
            )
