"""BatchSampler: rows of logits become tokens, each by the parameters and the memory of its own reply.

The kernels treat every row alone and every reply has its own generator, so a reply's tokens never depend on
what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kvfold.plugins.contract.errors import KvfoldError, RequestError
from kvfold.plugins.cpu.sampling_calls import Batch, NativeRow, Results, score
from kvfold.plugins.sampling.schema import Status
from kvfold.runtime.sampling.logprobs import TokenLogprob
from kvfold.runtime.sampling.sampling_state import SamplingState

NO_TOKEN = -1


class RowBatch(Protocol):
    """Rows that are sampled together, again and again, by kernels that know logits of their own kind.

    Attributes:
        results: of the last call.
    """

    results: Results

    def begin(self, logits: Any) -> None:
        """Begin to sample each row."""
        ...

    def finish(self) -> int:
        """The results of what was begun are there when this returns; how many rows have no token."""
        ...

    def sample_again(self, logits: Any, at: int) -> bool:
        """Sample one of the same rows once more; returns whether it has a token."""
        ...


@dataclass(frozen=True)
class Sampled:
    """A reply's next token.

    Attributes:
        token_id: its id, NO_TOKEN where there is an error.
        logprob: its log probability, if the reply's parameters ask for it.
        error: why this reply cannot go on; the others of its batch can.
    """

    token_id: int
    logprob: TokenLogprob | None = None
    error: KvfoldError | None = None


class BatchSampler:
    """Samples the next token of each of several replies; what it prepared serves while the same ones come."""

    def __init__(self, vocab_size: int, batch: Callable[[Sequence[NativeRow]], RowBatch] = Batch) -> None:
        """A sampler of rows of `vocab_size` logits, by the compiled kernels unless `batch` makes others."""
        self._vocab_size = vocab_size
        self._make_batch = batch
        self._errors: dict[int, KvfoldError] = {}
        self._logits: Any = None
        self._hold(())

    def sample(self, logits: Any, states: Sequence[SamplingState]) -> list[Sampled]:
        """Draw a token for each state; its counts and its grammar then know of it. Both halves at once."""
        self.begin(logits, states)
        return self.finish()

    def begin(self, logits: Any, states: Sequence[SamplingState]) -> None:
        """Begin to draw a token for each state.

        Args:
            logits: float32 [len(states), vocab], C-contiguous, or where they are; left as they are.
            states: in the rows' order, each once.

        Raises:
            KernelError: the kernels are missing or of another version.
        """
        if self._states != tuple(states):
            self._hold(tuple(states))
        self._errors = dict[int, KvfoldError]()
        for at, state in self._prepared:
            try:
                state.prepare()
            except KvfoldError as error:
                self._errors[at] = error
        self._logits = logits
        self._batch.begin(logits)

    def finish(self) -> list[Sampled]:
        """The tokens that were begun; counts and grammars then know of them.

        What Ctrl-C interrupted while it waited may be called once more.
        """
        failed = self._batch.finish()
        logits, self._logits, errors = self._logits, None, self._errors
        if failed:
            errors = _failures(self._batch.results) | errors
        tokens: list[int] = self._batch.results.tokens.tolist()
        for at, state in self._remembering:
            if at not in errors:
                try:
                    tokens[at] = self._remember(at, state, tokens[at], logits)
                except KvfoldError as error:
                    errors[at] = error
        if not self._told and not errors:
            return [Sampled(token) for token in tokens]
        logprobs = dict(_logprobs(self._batch.results, self._told))
        return [
            Sampled(NO_TOKEN, error=errors[at]) if at in errors else Sampled(token, logprobs.get(at))
            for at, token in enumerate(tokens)
        ]

    def _remember(self, at: int, state: SamplingState, token: int, logits: Any) -> int:
        """Let a state know of its token, or of another one where it guessed what its grammar refuses."""
        try:
            state.remember(token)
            return token
        except RequestError:
            if not state.guesses:
                raise
        with state.masked():
            if not self._batch.sample_again(logits, at):
                raise _failures(self._batch.results)[at]
        token = int(self._batch.results.tokens[at])
        state.remember(token)
        return token

    def _hold(self, states: tuple[SamplingState, ...]) -> None:
        assert all(state.vocab_size == self._vocab_size for state in states)
        self._states = states
        self._batch = self._make_batch([state.native for state in states])
        numbered = list(enumerate(states))
        self._prepared = [(at, state) for at, state in numbered if state.prepares]
        self._remembering = [(at, state) for at, state in numbered if state.remembers]
        self._told = {at: state.native.likely for at, state in numbered if state.native.likely >= 0}


def score_tokens(logits: np.ndarray, token_ids: np.ndarray, top: int) -> list[TokenLogprob]:
    """The log probability of a token a row, and of the `top` likeliest, under the model's distribution.

    Args:
        logits: float32 [n, vocab], on the host.
        token_ids: int [n], in the vocabulary.
        top: likeliest tokens to tell; all, where there are no more.

    Raises:
        KvfoldError: the engine returned NaN or infinite logits.
        KernelError: the kernels are missing or of another version.
    """
    rows = np.ascontiguousarray(logits, np.float32)
    results, failed = score(rows, token_ids, top)
    if failed:
        raise next(iter(_failures(results).values()))
    told = dict.fromkeys(range(len(rows)), results.likely_ids.shape[1])
    return [logprob for _, logprob in _logprobs(results, told)]


def _logprobs(results: Results, told: dict[int, int]) -> list[tuple[int, TokenLogprob]]:
    """Of each row that is told of, with so many likeliest tokens."""
    if not told:
        return []
    tokens, values = results.tokens.tolist(), results.logprobs.tolist()
    ids, likely = results.likely_ids.tolist(), results.likely_logprobs.tolist()
    return [
        (at, TokenLogprob(tokens[at], values[at], tuple(zip(ids[at][:top], likely[at][:top], strict=True))))
        for at, top in told.items()
    ]


def _failures(results: Results) -> dict[int, KvfoldError]:
    """Why rows have no token."""
    errors = dict[int, KvfoldError]()
    for at in np.flatnonzero(results.status).tolist():
        if results.status[at] == Status.NOTHING_ALLOWED:
            errors[at] = RequestError(
                "no token may follow: the grammar allows none, or only those that min_tokens forbids; "
                "lower min_tokens, or change the grammar"
            )
        else:
            errors[at] = KvfoldError(
                "the engine returned logits that are not finite; run `kvfold validate` on this bundle"
            )
    return errors
