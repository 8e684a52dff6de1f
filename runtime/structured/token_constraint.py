"""The grammar of one reply over llguidance's matcher: which tokens may come next."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.structured.grammar_errors import explain_failure

if TYPE_CHECKING:
    from llguidance import LLMatcher


class TokenConstraint:
    """A sampling Constraint. Its matcher is its own; used by one thread at a time."""

    def __init__(self, matcher: LLMatcher, first: np.ndarray, allowed: np.ndarray | None) -> None:
        """At the beginning of a reply.

        Args:
            matcher: at the beginning of its grammar.
            first: the mask there.
            allowed: the tokens that the tokenizer has; None where all bits of a mask are tokens.
        """
        self._matcher = matcher
        self._first = first
        self._allowed = allowed
        self._length = 0
        self._past_end = 0  # ends of sequence after the grammar's own, which the matcher does not count

    @property
    def finished(self) -> bool:
        """Whether nothing but an end may follow."""
        return bool(self._matcher.is_stopped())

    def fill_mask(self, mask: np.ndarray) -> None:
        """Set the bits of the tokens that may come next, an end of sequence among them where one may.

        Args:
            mask: uint32, `ceil(vocab / 32)` contiguous words; the lowest bit of the first is token 0.

        Raises:
            RequestError: the grammar became too complex for the limits of a step; the mask is then empty.
        """
        if self._length == 0:
            mask[:] = self._first
            return
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self._matcher.is_error():
            mask[:] = 0
            self._fail()
        if self._allowed is not None:
            mask &= self._allowed

    def accept(self, token_id: int) -> None:
        """Go on after a token.

        Raises:
            RequestError: the grammar does not allow it, and is where it was; or it became too complex for the
                limits of a step, and allows nothing any more.
        """
        finished = self.finished
        if not self._takes(token_id, finished):
            if self._matcher.is_error():
                self._fail()
            raise RequestError(
                f"token {token_id} may not follow {self._length} tokens of the reply by its grammar"
            )
        self._length += 1
        self._past_end += finished

    def rollback(self, count: int) -> None:
        """Take back the last tokens; raises RequestError where there are fewer."""
        past_end = min(count, self._past_end)
        if count > self._length or not self._matcher.rollback(count - past_end):
            raise RequestError(f"{count} tokens cannot be taken back; the grammar has read {self._length}")
        self._length -= count
        self._past_end -= past_end

    def _takes(self, token_id: int, finished: bool) -> bool:
        allowed = self._allowed
        if allowed is not None and not allowed[token_id // 32] >> np.uint32(token_id % 32) & 1:
            return False
        if self._matcher.try_consume_tokens([token_id]) == 1:
            return True
        return finished and bool(self._matcher.deep_copy().consume_token(token_id))

    def _fail(self) -> None:
        why = explain_failure(self._matcher.get_error())
        raise RequestError(
            f"the grammar failed after {self._length} tokens of the reply: {why}; make the grammar simpler"
        )
