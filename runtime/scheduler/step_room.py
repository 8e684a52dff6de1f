"""StepRoom: what is left of a step while the scheduler fills it."""

from __future__ import annotations

from kvfold.runtime.memory.paged_sequence import PagedSequence
from kvfold.runtime.scheduler.request import Request
from kvfold.runtime.scheduler.step_builder import Chunk


class StepRoom:
    """Tokens, those of prompts among them, and rows of logits, of which each sequence is left one."""

    def __init__(self, tokens: int, prompts: int, rows: int, sequences: int) -> None:
        """An empty step.

        Args:
            tokens: at most, of all sequences.
            prompts: tokens of prompts among them, at most.
            rows: of logits at most.
            sequences: that the step may have, no more than rows.
        """
        self._tokens = tokens
        self._prompts = prompts
        self._rows = rows
        self._sequences = sequences

    @property
    def admits(self) -> bool:
        """Whether a prompt may begin."""
        return min(self._tokens, self._prompts, self._rows) > 0

    def next_chunk(self, request: Request, sequence: PagedSequence) -> Chunk | None:
        """The next positions of a request, as many as there is room for; None where there is none.

        Args:
            request: whose turn it is.
            sequence: with its pages.
        """
        start = sequence.num_computed
        if request.length - start <= 1:  # 0: its next token is being drawn
            return Chunk(sequence, start, start + 1, range(start, start + 1)) if self._tokens else None
        tokens = min(self._tokens, self._prompts)
        if not tokens:
            return None
        first = max(start, request.first_wanted)
        others = max(self._sequences - 1, 0)
        end = min(request.length, start + tokens, first + self._rows - others)
        return Chunk(sequence, start, end, range(first, end))

    def take(self, chunk: Chunk, prompt: bool) -> None:
        """Put a chunk into the step, of a prompt or of a reply."""
        size = chunk.end - chunk.start
        self._tokens -= size
        self._prompts -= size if prompt else 0
        self._rows -= len(chunk.wanted)
        self._sequences -= 1
