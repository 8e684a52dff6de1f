"""Flight: a step on its way from its inputs to its tokens."""

from __future__ import annotations

from collections.abc import Sequence

from kvfold.runtime.engine.protocol import Drawing, Underway, drawn_id
from kvfold.runtime.loop.ticket import Ticket
from kvfold.runtime.sampling.batch_sampler import Sampled
from kvfold.runtime.scheduler.scheduler import Scheduled

# Tickets that get a token, and the rows of logits that it is drawn from.
Sampling = Sequence[tuple[Ticket, int]]


class Flight:
    """A step that was begun; `draw`, then `collect`.

    Attributes:
        scheduled: what it computes.
        underway: where its logits are.
        begun: clock of its beginning.
        prefill: tokens of prompts that it computes.
        decoding: running replies that it goes on with.
    """

    def __init__(self, scheduled: Scheduled, underway: Underway, begun: float) -> None:
        """A step that the engine has just begun."""
        self.scheduled = scheduled
        self.underway = underway
        self.begun = begun
        self.prefill = self.decoding = 0
        for request, chunk in scheduled:
            if request.replies:
                self.decoding += 1
            else:
                self.prefill += chunk.end - chunk.start
        self._drawing: Drawing | None = None
        self._tickets: list[Ticket] = []

    def draw(self, sampling: Sampling) -> bool:
        """Draw a token for each ticket; whether the next step may begin before they are collected."""
        states = [ticket.state for ticket, _ in sampling if ticket.state]
        self._drawing = self.underway.draw([row for _, row in sampling], states)
        self._tickets = [ticket for ticket, _ in sampling]
        if self._drawing.feeds:
            for place, ticket in enumerate(self._tickets):
                ticket.request.expect(drawn_id(place))
        return self._drawing.feeds

    def collect(self) -> list[tuple[Ticket, Sampled]]:
        """Wait for the step; each ticket's token, but of those that ended meanwhile."""
        assert self._drawing is not None
        drawn = zip(self._tickets, self._drawing.collect(), strict=True)
        return [(ticket, sampled) for ticket, sampled in drawn if not ticket.ended]
