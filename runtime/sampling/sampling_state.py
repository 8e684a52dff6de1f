"""SamplingState: what sampling remembers of one reply from token to token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from kvfold.plugins.contract.errors import RequestError
from kvfold.plugins.cpu.sampling_calls import NativeRow
from kvfold.plugins.sampling.schema import SamplingRow
from kvfold.runtime.sampling.constraint import Constraint
from kvfold.runtime.sampling.params import SamplingParams


class SamplingState:
    """One reply's generator, the tokens it has seen, and its grammar; a preempted request keeps it.

    Attributes:
        params: how the reply is sampled.
        vocab_size: logits a row.
        constraint: its grammar, if any.
        native: how its next token is sampled, as the kernels read it.
        guesses: whether a token is first sampled as if there were no grammar, which is then asked about that
            one alone. Greedy replies do: their likeliest token, if it is allowed, is the likeliest allowed.
        prepares: whether there is something to do before a token is sampled.
        remembers: whether a sampled token changes how the next one is sampled.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: np.ndarray,
        eos_token_ids: Sequence[int],
        vocab_size: int,
        constraint: Constraint | None = None,
    ) -> None:
        """A fresh generator of the request's seed.

        Args:
            params: how, and until when.
            prompt_ids: int [n], checked against the vocabulary.
            eos_token_ids: tokens that may end a reply.
            vocab_size: logits a row.
            constraint: a grammar that no other reply uses.

        Raises:
            RequestError: a token id of logit_bias or stop_token_ids is not in the vocabulary.
        """
        for name, ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
            for token_id in ids:
                if token_id >= vocab_size:
                    raise RequestError(
                        f"token id {token_id} of {name} is not in the vocabulary [0, {vocab_size}); "
                        "use ids of this model's tokenizer"
                    )
        self.params = params
        self.vocab_size = vocab_size
        self.constraint = constraint
        self._generator = np.random.default_rng(params.seed) if params.temperature > 0 else None
        self._length = 0
        self._mask = None if constraint is None else np.zeros(-(-vocab_size // 32), np.uint32)
        self._penalises = (
            params.repetition_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0
        )
        self._seen = _Seen(params, prompt_ids, vocab_size if self._penalises else 0)
        self.native = NativeRow(self._row(vocab_size, eos_token_ids))
        self.native.seen_count = self._seen.count
        self.guesses = constraint is not None and params.temperature == 0
        self._mask_address = self.native.mask
        if self.guesses:
            self.native.mask = None
        self._bans = params.min_tokens > 0
        self.prepares = self._generator is not None or (constraint is not None and not self.guesses)
        self.remembers = self._bans or self._penalises or constraint is not None

    def prepare(self) -> None:
        """Draw the next token's number; ask the grammar what may follow."""
        if self._generator is not None:
            self.native.draw = self._generator.random()
        if not self.guesses:
            self._fill_mask()

    @contextmanager
    def masked(self) -> Iterator[None]:
        """Meanwhile a token that is guessed is sampled under the grammar's mask."""
        self._fill_mask()
        self.native.mask = self._mask_address
        try:
            yield
        finally:
            self.native.mask = None

    def remember(self, token_id: int) -> None:
        """Count a token that was sampled.

        Raises:
            RequestError: the grammar refuses it; then nothing is counted.
        """
        if self.constraint is not None:
            self.constraint.accept(token_id)
        self._length += 1
        if self._bans and self._length >= self.params.min_tokens:
            self._bans = False
            self.native.banned_count = 0
        if self._penalises:
            self._seen.add(token_id)
            self.native.seen_count = self._seen.count

    def _fill_mask(self) -> None:
        if self.constraint is not None and self._mask is not None:
            self.constraint.fill_mask(self._mask)

    def replay(self, token_ids: Sequence[int]) -> None:
        """Be where sampling these tokens would have led."""
        if self._generator is not None:
            self._generator.random(len(token_ids))
        for token_id in token_ids:
            self.remember(token_id)

    def _row(self, vocab_size: int, eos_token_ids: Sequence[int]) -> SamplingRow:
        params = self.params
        ends = {*eos_token_ids, *params.stop_token_ids} if params.min_tokens else set[int]()
        return SamplingRow(
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            frequency_penalty=params.frequency_penalty,
            presence_penalty=params.presence_penalty,
            likely=None if params.logprobs is None else min(params.logprobs, vocab_size),
            mask=self._mask,
            seen_ids=self._seen.ids,
            seen_counts=self._seen.counts,
            bias_ids=np.array([*params.logit_bias], np.int32),
            bias_values=np.array([*params.logit_bias.values()], np.float32),
            banned_ids=np.array(sorted(end for end in ends if end < vocab_size), np.int32),
        )


class _Seen:
    """At most `limit` tokens of prompt and reply, and how often each is in the reply, side by side.

    Only a repetition penalty asks for the prompt's.
    """

    def __init__(self, params: SamplingParams, prompt_ids: np.ndarray, limit: int) -> None:
        prompt = np.unique(prompt_ids) if params.repetition_penalty != 1 else np.empty(0, np.int64)
        capacity = min(len(prompt) + params.max_tokens, limit)
        assert len(prompt) <= capacity and not (prompt < 0).any() and not (prompt >= limit).any()
        self.ids = np.zeros(capacity, np.int32)
        self.ids[: len(prompt)] = prompt
        self.counts = np.zeros(capacity, np.int32)
        self.count = len(prompt)
        self._places = dict(zip(prompt.tolist(), range(len(prompt)), strict=True))

    def add(self, token_id: int) -> None:
        place = self._places.setdefault(token_id, self.count)
        if place == self.count:
            self.ids[place] = token_id
            self.count += 1
        self.counts[place] += 1
